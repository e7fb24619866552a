"""The builder looks at the store's folder as at everything else, and leaves nothing there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import ray

from raycache.app import build
from raycache.dry_run import CannotWork, Findings, refuse_what_cannot_work
from raycache.settings import AppSettings


def settings(folder: str | Path) -> AppSettings:
    model: dict[str, Any] = {"model": {"path": "demo", "dtype": "float32"}, "defaults": {"size": "128x128"}}
    parallel = {"ranks_per_replica": 2, "device": "cpu"}
    return AppSettings.model_validate({**model, "parallel": parallel, "store": {"folder": str(folder)}})


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("kept/jobs", "relative.*absolute path"),
        ("~nobody-here/jobs", "home.*absolute path"),
        ("{here}/missing/jobs", "missing does not exist; create or mount it: only 'jobs' is created"),
        ("{here}/file", "is a file; give a folder"),
        ("{here}/file/jobs", "file does not exist"),
        ("/proc/jobs", "/proc is not writable: .*; let the service's user write there"),
    ],
)
def test_a_folder_in_which_no_store_could_keep_jobs(tmp_path: Path, folder: str, words: str):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWork, match=f"store.folder: .*{words}"):
        build(settings(folder.format(here=tmp_path)))
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_looked_at_and_left_as_it_was(tmp_path: Path):
    kept = settings(tmp_path / "jobs")
    assert build(kept)._bound_deployment.name == "Ingress"
    assert not list(tmp_path.iterdir()), "only the store makes it"
    (tmp_path / "jobs/tmp").mkdir(parents=True)
    build(kept)
    assert [left.name for left in (tmp_path / "jobs").rglob("*")] == ["tmp"]
    (tmp_path / "jobs/tmp").rmdir()
    (tmp_path / "jobs/tmp").symlink_to("/proc")  # of another user, as good as: nobody writes there
    with pytest.raises(CannotWork, match=r"store.folder: .*/jobs/tmp is not writable"):
        build(kept)


@pytest.mark.parametrize(("here", "refused"), [(True, True), (False, False)])
def test_a_store_goes_where_its_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: bool, refused: bool):
    """Of two nodes one may lack the mount."""
    found = {"a": Findings(store=["store.folder: no mount"]), "b": Findings(store=["store.folder: no mount"] * here)}
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 9.0}} for name in "ab"]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("raycache.dry_run.check_port", lambda: None)
    monkeypatch.setattr("raycache.dry_run._look", lambda settings, nodes: found)
    monkeypatch.setattr("raycache.dry_run._replaces_engines", lambda: False)
    with pytest.raises(CannotWork, match="no mount") if refused else contextlib.nullcontext():
        refuse_what_cannot_work(settings(tmp_path), {})
