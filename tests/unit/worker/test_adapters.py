"""LoRAs from job to job: images are those of fused weights, nothing is left behind, and files are judged whole."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

from cache_core import CacheOptions, FBCacheOptions, NoCacheOptions, cache_session
from raycache.demo.noise import build_noise_model
from raycache.protocol.job_errors import LoraNotLoaded
from raycache.protocol.lora import LoraChoice
from raycache.settings import ModelSettings
from raycache.worker.adapters import Adapters, adapters_of
from raycache.worker.lora_weights import read_lora
from raycache.worker.stepper import Ended, Stepper
from tests.helpers.flux_pipe import draw, load
from tests.helpers.loras import fuse, make_lora
from tests.helpers.tiny_flux import decisions

CACHE = FBCacheOptions(warmup_steps=2, residual_diff_threshold=0.3)
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("noise") / "model", layers=1, single_layers=3)


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    transformer, made = load(folder).transformer, tmp_path_factory.mktemp("loras")
    return {
        "a": make_lora(made / "a", transformer, 1),
        "b.2": make_lora(made / "b", transformer, 2, rank=8, alpha=4, layers=("to_q", "to_v")),
        "c": make_lora(made / "c", transformer, 3, rank=2, layers=("proj_mlp", "ff.net.2")),
    }


@pytest.fixture
def pipe(folder: Path) -> FluxPipeline:
    return load(folder)


def settings(files: dict[str, Path], **fields: Any) -> ModelSettings:
    loras = {name: {"path": str(file)} for name, file in files.items()}
    return ModelSettings.model_validate({"path": "noise", "dtype": "float32", "loras": loras, **fields})


def made(pipe: Any, files: dict[str, Path], **fields: Any) -> Adapters:
    adapters = adapters_of(pipe, settings(files, **fields))
    assert adapters is not None
    return adapters


def call(seed: int) -> Callable[[Any], torch.Tensor]:
    return lambda pipe: draw(pipe, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(seed))


def fused(folder: Path, file: Path | None, scale: float, options: CacheOptions, seed: int) -> tuple[torch.Tensor, Any]:
    pipe = load(folder)
    if file is not None:
        fuse(pipe, file, scale)
    with torch.no_grad(), cache_session(pipe.transformer, options) as report:
        return call(seed)(pipe), report


def run(stepper: Stepper, jobs: dict[str, tuple[int, CacheOptions, LoraChoice | None]]) -> tuple[dict[str, Ended], int]:
    """All at once; whoever may shares a call. Also the largest number of jobs in one."""
    ended: dict[str, Ended] = {}
    most = 0
    for name, (seed, options, lora) in jobs.items():
        assert stepper.start(name, call(seed), options, lora=lora) is None
    while waiting := stepper.waiting:
        groups: dict[Any, list[str]] = {}
        for name, key in waiting.items():
            groups.setdefault(key, []).append(name)
        for names in groups.values():
            most = max(most, len(names))
            ended |= {one.name: one for one in stepper.step(names)}
    return ended, most


def same(left: torch.Tensor, right: torch.Tensor) -> None:
    assert float((left - right).abs().max() / right.abs().max()) < 1e-5


@pytest.mark.slow
def test_jobs_with_different_loras_interleave_and_are_what_fused_weights_draw(
    folder: Path, files: dict[str, Path], pipe: FluxPipeline
):
    adapters = made(pipe, files)
    for name in files:
        adapters.load(name, None)
    a, weaker, b = LoraChoice("a"), LoraChoice("a", 0.5), LoraChoice("b.2", -0.7)
    jobs = {
        "none": (1, CACHE, None),
        "a": (1, CACHE, a),
        "a too": (2, CACHE, a),
        "weaker": (1, CACHE, weaker),
        "b": (1, CACHE, b),
        "uncached": (1, NoCacheOptions(), b),
    }
    ended, most = run(Stepper(pipe, adapters=adapters), jobs)
    assert most == 2, "only the two with the same LoRA and scale share calls"
    for name, (seed, options, lora) in jobs.items():
        file, scale = (None, 1.0) if lora is None else (files[lora.name], lora.scale)
        expected, report = fused(folder, file, scale, options, seed)
        assert ended[name].error is None
        same(ended[name].result, expected)
        assert decisions(ended[name].report) == decisions(report)
    images = [ended[name].result for name in ("none", "a", "weaker", "b")]
    assert all((one - other).abs().max() > 1e-2 for k, one in enumerate(images) for other in images[:k])
    cached = [one for ended_job in ended.values() for one in decisions(ended_job.report)]
    assert any(one[0] for one in cached)
    assert not all(one[0] for one in cached)


def _alive(transformer: torch.nn.Module) -> tuple[int, int, int]:
    """Tensors of this process, their bytes, and what modules have by name."""
    gc.collect()
    # By the exact type: what compiling leaves of other tests has no size.
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return len(tensors), sum(one.nbytes for one in tensors), sum(len(vars(module)) for module in transformer.modules())


@pytest.mark.slow
def test_switching_and_reloading_twenty_times_leaves_memory_flat(files: dict[str, Path], pipe: FluxPipeline):
    """There is room for one, so each job puts away that of the job before."""
    adapters = made(pipe, files, lora_bytes=60_000)
    stepper, held = Stepper(pipe, adapters=adapters), list[tuple[int, int, int]]()
    plain = call(1)(pipe)
    for number in range(10):
        for name in ("a", "b.2"):
            adapters.load(name, None)
            assert stepper.start("job", call(1), NoCacheOptions(), lora=LoraChoice(name, 0.5)) is None
            stepper.step(["job"])
            stepper.end("job")
            assert list(adapters.bytes) == [name]
        if number in (1, 5, 9):  # to look at all that there is takes a second
            held.append(_alive(pipe.transformer))
    assert len(set(held)) == 1, held
    adapters.use(None)
    assert torch.equal(call(1)(pipe), plain)


def test_who_was_used_least_lately_is_put_away_unless_a_job_draws_with_it(files: dict[str, Path], pipe: FluxPipeline):
    sizes = {name: read_lora(pipe, file).nbytes for name, file in files.items()}
    adapters = made(pipe, files, lora_bytes=sum(sizes.values()) - 1)
    for name in ("a", "b.2"):
        adapters.load(name, None)
    with adapters.held(LoraChoice("a")):
        pass
    adapters.load("c", None)
    assert adapters.bytes == {"a": sizes["a"], "c": sizes["c"]}
    with adapters.held(LoraChoice("a")), adapters.held(LoraChoice("c")):
        adapters.load("b.2", None)
        assert set(adapters.bytes) == set(files), "more than the bytes, while jobs draw with all"
        with adapters.held(LoraChoice("b.2")):
            pass
    assert list(adapters.bytes) != list(files)
    assert sum(adapters.bytes.values()) <= sum(sizes.values()) - 1


def _without_half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("to_q.lora_B.weight")}


def _wider(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: torch.cat([t, t], 1) if n.endswith("to_q.lora_A.weight") else t for n, t in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {**state, "text_encoder.a.lora_A.weight": torch.ones(4, 4)}, "text_encoder"),
        (lambda state: {**state, "transformer.norm_out.weight": torch.ones(4, 4)}, "norm_out"),
        (lambda state: {f"{name}".replace("blocks.0", "blocks.99"): t for name, t in state.items()}, "another model"),
        (_without_half, "both matrices"),
        (_wider, "another model"),
        (lambda state: {}, "no LoRA|Lora|LoRA"),
    ],
    ids=["text encoder", "no LoRA's key", "other blocks", "half", "other width", "empty"],
)
def test_a_file_that_does_not_fit_changes_nothing(
    tmp_path: Path, files: dict[str, Path], pipe: FluxPipeline, change: Any, words: str
):
    plain = call(1)(pipe)
    save_file(change(load_file(files["a"])), tmp_path / "bad.safetensors")
    adapters = made(pipe, {"bad": tmp_path / "bad.safetensors", "b.2": files["b.2"]})
    with pytest.raises(LoraNotLoaded, match=words):
        adapters.load("bad", None)
    assert not adapters.bytes
    assert torch.equal(call(1)(pipe), plain)
    adapters.load("b.2", None)
    shutil.copy(files["a"], tmp_path / "bad.safetensors")
    adapters.load("bad", None)
    assert list(adapters.bytes) == ["b.2", "bad"], "a file that was mended is read again"


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at al"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, pipe: FluxPipeline, content: bytes):
    (tmp_path / "bad.safetensors").write_bytes(content)
    adapters = made(pipe, {"bad": tmp_path / "bad.safetensors"})
    with pytest.raises(LoraNotLoaded, match="bad"):
        adapters.load("bad", None)


def test_one_that_fails_halfway_leaves_nothing(
    files: dict[str, Path], pipe: FluxPipeline, monkeypatch: pytest.MonkeyPatch
):
    adapters = made(pipe, files)
    adapters.load("a", None)
    inside, transformer = type(pipe.transformer).load_lora_adapter, pipe.transformer

    def small(*args: Any, **kwargs: Any) -> None:
        inside(transformer, *args, **kwargs)
        raise torch.OutOfMemoryError("no room for all of it")

    monkeypatch.setattr(transformer, "load_lora_adapter", small)
    with pytest.raises(LoraNotLoaded, match="no room"):
        adapters.load("b.2", None)
    monkeypatch.undo()
    assert list(adapters.bytes) == ["a"]
    assert not [name for name, _ in transformer.named_parameters() if "lora_1" in name]
    adapters.load("b.2", None)


def test_pipelines_that_can_have_none_are_refused_at_the_start(files: dict[str, Path], pipe: FluxPipeline):
    class WithUNet(FluxPipeline):
        """As one of Stable Diffusion's."""

    other = WithUNet(**pipe.components)
    other.transformer, other.unet = None, torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="WithUNet has unet"):
        adapters_of(other, settings(files))
    assert adapters_of(other, settings({})) is None


def test_a_file_for_a_second_transformer_that_is_not_there_is_refused(files: dict[str, Path], pipe: FluxPipeline):
    both = {"ink": {"path": str(files["a"]), "path_2": str(files["c"])}}
    with pytest.raises(ValueError, match=r"model\.loras\.ink: FluxPipeline has one transformer"):
        adapters_of(pipe, ModelSettings.model_validate({"path": "noise", "loras": both}))
