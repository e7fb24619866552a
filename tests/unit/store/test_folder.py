"""What is in the folder after a process died anywhere, and who may look at it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from raycache.store.folder import JobFolder
from tests.unit.store.test_index import kept


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path / "jobs")


def test_a_job_is_as_it_was_written_last(folder: JobFolder):
    job = kept("video", "blue", 1.0)
    folder.add(job)
    done = job.model_copy(update={"status": "completed", "progress": 100})
    folder.write(done)
    assert folder.load() == JobFolder(folder.path).load() == [done]


def test_a_job_of_november_2026_has_its_input_images(folder: JobFolder):
    folder.add(job := kept("video", "blue", 1.0, images={"image": 7}))
    path = folder.path_of(job.id, "job.json")
    path.write_text(path.read_text().replace('"images"', '"pictures"'))
    assert JobFolder(folder.path).load() == [job]


def test_a_write_that_fails_leaves_what_was(folder: JobFolder, monkeypatch: pytest.MonkeyPatch):
    folder.add(job := kept("video", None, 1.0))

    def dies(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(OSError, match="No space"):
        folder.write(job.model_copy(update={"status": "failed"}))
    with pytest.raises(OSError, match="No space"):
        folder.add(kept("video", None, 2.0))
    monkeypatch.undo()
    assert folder.load() == [job]
    assert [path.name for path in (folder.path / "jobs").iterdir()] == [job.id]
    assert not list((folder.path / "tmp").iterdir())


def test_what_a_dead_process_left_is_thrown_away_and_what_is_not_ours_is_not(folder: JobFolder):
    folder.add(job := kept("video", None, 1.0))
    half = kept("video", None, 2.0)
    (folder.path / "jobs" / half.id).mkdir()
    foreign = folder.path / "jobs" / "holiday"
    foreign.mkdir()
    torn = kept("video", None, 3.0)
    folder.add(torn)
    (folder.path / "jobs" / torn.id / "job.json").write_text(torn.model_dump_json()[:50])
    for place in ("tmp", "trash"):
        (folder.path / place / "x").mkdir()
        (folder.path / place / "x" / "video.mp4").write_bytes(b"0")
    assert folder.load() == [job]
    assert foreign.is_dir()
    assert not (folder.path / "jobs" / half.id).exists()
    assert not list((folder.path / "tmp").iterdir()) + list((folder.path / "trash").iterdir())


def test_a_record_in_another_ones_folder_is_no_job(folder: JobFolder):
    """Somebody copied a folder: its files would be looked for under the other's name."""
    folder.add(job := kept("video", None, 1.0))
    copy = folder.path / "jobs" / kept("video", None, 2.0).id
    copy.mkdir()
    (copy / "job.json").write_text(job.model_dump_json())
    assert folder.load() == [job]


def test_a_removed_job_takes_no_file_any_more(folder: JobFolder):
    folder.add(job := kept("video", None, 1.0))
    folder.remove(job.id)
    folder.remove(job.id)
    with folder.scratch() as scratch:
        (scratch / "video.mp4").write_bytes(b"late")
        with pytest.raises(FileNotFoundError):
            folder.adopt(job.id, scratch / "video.mp4")
    with pytest.raises(FileNotFoundError):
        folder.write(job)
    assert folder.load() == []
    assert not list((folder.path / "jobs").iterdir())


def test_other_users_of_the_machine_see_nothing(folder: JobFolder):
    folder.add(job := kept("video", None, 1.0))
    for path in (folder.path / "jobs", folder.path / "jobs" / job.id):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_folder_is_taken_by_one_process_and_free_when_that_dies(folder: JobFolder):
    code = "import sys, pathlib\nfrom raycache.store.folder import JobFolder\n"
    code += (
        f"folder = JobFolder(pathlib.Path({str(folder.path)!r}))\nprint(folder.take(), flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert not folder.take()
        other.kill()
    assert folder.take()
    folder.release()
    folder.release()
