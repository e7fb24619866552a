"""The builder refuses what cannot work, before Serve touches what does. No Ray here: this machine is all nodes."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.serve.exceptions import RayServeException

from raycache.app import build
from raycache.demo import demo_model_path
from raycache.dry_run import CannotWork, _agree, _replaces_engines, refuse_what_cannot_work
from raycache.gang.placement import placement_bundles
from raycache.settings import AppSettings, ServiceSettings

DEMO = {
    "model": {"path": "demo", "dtype": "float32"},
    "parallel": {"ranks_per_replica": 2, "device": "cpu"},
    "defaults": {"size": "128x128"},
}


def settings(**sections: Any) -> AppSettings:
    """The bundled model, with sections changed."""
    known = {
        name: {**DEMO.get(name, {}), **value} if isinstance(value, dict) else value for name, value in sections.items()
    }
    return AppSettings.model_validate({**DEMO, **known})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model_path(), tmp_path / "model"))


def test_what_works_is_built():
    assert build(settings())._bound_deployment.name == "Ingress"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"path": "/no/such/model"}}, "/no/such/model"),
        ({"model": {"path": "flux-dev"}}, "flux-dev"),
        ({"model": {"path": "somebody/nothing", "local_files_only": True}}, "somebody/nothing"),
        ({"model": {"presets": "/no/presets.yaml"}}, "/no/presets.yaml"),
        ({"ingress": {"api_keys_file": "/no/keys"}}, "/no/keys"),
        ({"parallel": {"ranks_per_replica": 3}}, "legal values: 1, 2, 4"),
        ({"cache": {"type": "DBCache", "Fn_compute_blocks": 60}}, "Fn_compute_blocks"),
        ({"cache": {"type": "DBPrune", "Fn_compute_blocks": 8, "Bn_compute_blocks": 50}}, "Bn_compute_blocks"),
        ({"defaults": {"size": "130x128"}}, "130x128"),
        ({"defaults": {"size": "2048x2048"}, "limits": {"max_pixels": 65536}}, "max_pixels|pixels"),
        ({"defaults": {"size": "128x128", "num_inference_steps": 200}}, "num_inference_steps"),
        ({"warmup": [{"size": "128x130"}]}, "warmup.*128x130"),
        ({"warmup": [{"size": "48x48"}]}, "warmup.*9 image tokens"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_work_is_refused_by_name(sections: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CannotWork, match=words) as caught:
        build(settings(**sections))
    assert isinstance(caught.value, RayServeException), "or Serve's build task would try it four times"


def test_a_hub_that_does_not_have_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CannotWork, match="somebody/nothing"):
        build(settings(model={"path": "somebody/nothing", "cache_dir": str(tmp_path)}))


@pytest.mark.parametrize("cached", [True, False], ids=["in the cache", "yet to be downloaded"])
def test_a_hub_model_is_known_by_its_configuration(model: Path, monkeypatch: pytest.MonkeyPatch, cached: bool):
    """No weights are there, nor looked for, and what the builder fetched is gone again."""
    scratched: list[Path] = []

    def snapshot(hub_id: str, **how: Any) -> str:
        if how["local_files_only"] and not cached:
            raise FileNotFoundError("not in the cache")
        folder = Path(how.get("local_dir") or model.parent / "cached")
        for file in model.rglob("*"):
            name = str(file.relative_to(model))
            if any(fnmatch(name, pattern) for pattern in how["allow_patterns"]):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / name)
        scratched.extend([folder] if how.get("local_dir") else [])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    build(settings(model={"path": "somebody/something"}))
    with pytest.raises(CannotWork, match="Fn_compute_blocks"):
        build(settings(model={"path": "somebody/something"}, cache={"type": "DBCache", "Fn_compute_blocks": 60}))
    assert bool(scratched) != cached
    assert not [folder for folder in scratched if folder.exists()]


def _cut(model: Path) -> None:
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _pointer(model: Path) -> None:
    (model / "vae" / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def _another_family(model: Path) -> None:
    index = model / "model_index.json"
    index.write_text(index.read_text().replace("FluxTransformer2DModel", "SD3Transformer2DModel"))


BROKEN: dict[str, Callable[[Path], object]] = {
    "no index": lambda model: (model / "model_index.json").unlink(),
    "half an index": lambda model: (model / "model_index.json").write_text("{"),
    "another family": _another_family,
    "no transformer": lambda model: shutil.rmtree(model / "transformer"),
    "no tokenizer": lambda model: shutil.rmtree(model / "tokenizer_2"),
    "no weights": lambda model: (model / "text_encoder" / "model.safetensors").unlink(),
    "a shard is missing": lambda model: (model / "vae" / "x.safetensors.index.json").write_text(
        '{"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "two.safetensors"}}'
    ),
    "weights truncated": _cut,
    "a pointer of Git LFS": _pointer,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_from_which_nothing_can_be_loaded(model: Path, what: str):
    build(settings(model={"path": str(model)}))
    BROKEN[what](model)
    with pytest.raises(CannotWork, match=str(model)):
        build(settings(model={"path": str(model)}))


def test_files_of_people_are_refused_with_the_line(tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("good-key\ntwo words\n")
    with pytest.raises(CannotWork, match="line 2"):
        build(settings(ingress={"api_keys_file": str(keys)}))


def test_a_node_that_lacks_it_is_not_all_nodes(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "ray.serve"):
        _agree("engine", {"a": ["no model"], "b": []})
    assert "No engine can start on node a: no model" in caplog.text
    with pytest.raises(CannotWork, match="no model"):
        _agree("engine", {"head": ["no model"], "a": ["no model"]})
    _agree("engine", {})  # nobody could hold it yet: nodes may be on their way
    _agree("ingress", {"head": [], "a": []})


@pytest.mark.parametrize(("engines", "may_come", "refused"), [(0, False, False), (1, False, True), (1, True, False)])
def test_a_gang_that_no_node_holds_does_not_replace_one_that_draws(
    monkeypatch: pytest.MonkeyPatch, engines: int, may_come: bool, refused: bool
):
    """Where none draws it is deployed, as ever: nodes may come up later than the application."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "n", "Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr("raycache.dry_run.check_port", lambda: None)
    monkeypatch.setattr("raycache.dry_run._look", lambda settings, nodes: {})
    monkeypatch.setattr("raycache.dry_run._replaces_engines", lambda: engines > 0)
    greedy = settings(parallel={"rank_cpus": 2, "nodes_may_come": may_come})
    if not refused:
        return refuse_what_cannot_work(greedy, {"flux": placement_bundles(greedy)})
    with pytest.raises(CannotWork, match="cannot hold 1 gang"):
        refuse_what_cannot_work(greedy, {"flux": placement_bundles(greedy)})


def several(*entries: dict[str, Any], **beside: Any) -> ServiceSettings:
    """Two models, or what is said, with the settings of the bundled one beside."""
    named = [
        {"model": {"name": f"m{k}", "path": "demo", **entry.pop("model", {})}, **entry}
        for k, entry in enumerate(entries)
    ]
    return ServiceSettings.model_validate({**DEMO, "model": None, "models": named, **beside})


def test_several_models_have_a_deployment_each():
    cut = {"cache": {"type": "none"}, "limits": {"max_images": 1}, "reliability": {"drain_timeout_s": 99}}
    made = build(several({"model": {"name": "org/a"}, **cut}, {"autoscaling": {"max_replicas": 3}}))._bound_deployment
    service, engines, bundles = made.init_args
    bound = {name: engine._bound_deployment for name, engine in engines.items()}
    assert {name: engine.name for name, engine in bound.items()} == {"org/a": "Engine-org-a", "m1": "Engine-m1"}
    assert [engine.init_args[0] for engine in bound.values()] == list(service.engines)
    assert [engine.init_args[0].cache.type for engine in bound.values()] == ["none", "DBCache"]
    assert bound["m1"]._deployment_config.autoscaling_config.max_replicas == 3
    assert bound["org/a"]._deployment_config.autoscaling_config is None
    drained = [one._deployment_config.graceful_shutdown_timeout_s for one in (bound["org/a"], bound["m1"], made)]
    assert drained == [99, 60, 99], "an ingress waits for the slowest"
    assert {name: len(one) for name, one in bundles.items()} == {"org/a": 3, "m1": 3}
    assert build(settings())._bound_deployment.init_args[1]["flux"]._bound_deployment.name == "Engine"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"model": {"path": "/no/such/model"}}, "model 'm1': .*/no/such/model"),
        ({"cache": {"type": "DBCache", "Fn_compute_blocks": 60}}, "model 'm1': .*Fn_compute_blocks"),
        ({"warmup": [{"size": "128x130"}]}, "model 'm1': warmup.*128x130"),
        ({"limits": {"max_steps": 3}}, "model 'm1': .*num_inference_steps"),
    ],
)
def test_what_cannot_work_is_refused_with_its_model(entry: dict[str, Any], words: str):
    build(several({}, {}))
    with pytest.raises(CannotWork, match=words) as caught:
        build(several({}, entry))
    assert "'m0'" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "cpus", "words"),
    [
        ([{}, {}], 6.0, None),
        ([{}, {}], 5.0, "not all together"),
        ([{}, {"autoscaling": {"min_replicas": 0, "max_replicas": 1}}], 3.0, None),
        ([{}, {"parallel": {"nodes_may_come": True}}], 3.0, None),
        ([{}, {"parallel": {"rank_cpus": 9}}], 6.0, "model 'm1': this cluster cannot hold 1 gang"),
    ],
    ids=str,
)
def test_gangs_of_all_models_must_find_a_place_together(
    monkeypatch: pytest.MonkeyPatch, entries: list[dict[str, Any]], cpus: float, words: str | None
):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "n", "Alive": True, "Resources": {"CPU": cpus}}])
    monkeypatch.setattr("raycache.dry_run.check_port", lambda: None)
    monkeypatch.setattr("raycache.dry_run._look", lambda settings, nodes: {})
    monkeypatch.setattr("raycache.dry_run._replaces_engines", lambda: True)
    service = several(*(dict(entry) for entry in entries))
    bundles = {one.model.name: placement_bundles(one) for one in service.engines}
    if words is None:
        return refuse_what_cannot_work(service, bundles)
    with pytest.raises(CannotWork, match=words):
        refuse_what_cannot_work(service, bundles)


@pytest.mark.parametrize("replica", ["flux#Engine#x", "flux#Engine-org-a#x", "flux#Ingress#x", "other#Engine#x"])
def test_engines_of_any_model_are_engines_that_serve(monkeypatch: pytest.MonkeyPatch, replica: str):
    status = SimpleNamespace(applications={"flux": SimpleNamespace(status="DEPLOYING")})
    monkeypatch.setattr("raycache.dry_run.serve.status", lambda: status)
    monkeypatch.setattr("raycache.dry_run.living_replicas", lambda: [replica])
    assert _replaces_engines() == replica.startswith("flux#Engine")


@pytest.mark.slow
def test_looking_needs_no_torch():
    """It would cost every deployment seconds."""
    code = "from tests.unit.test_dry_run import *; build(settings()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
