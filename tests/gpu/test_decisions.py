"""On a GPU, in bfloat16: a cache that reuses nothing changes nothing, and decisions are those of a CPU."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
import torch

from benchmarks.gpu.methods import methods
from benchmarks.gpu.models import Steps, compile_blocks, flux, quantize
from benchmarks.gpu.plan import SMALL
from cache_core import CacheReport, DBCacheOptions, DBPruneOptions, FBCacheOptions, cache_session

SHAPE = dataclasses.replace(SMALL, doubles=3, singles=6, dtype="bfloat16", tokens=64, text=16, steps=10)
NEVER: dict[str, Any] = {"warmup_steps": 1, "residual_diff_threshold": 1e-9}
OPTIONS = [options for options in methods(SHAPE).values() if options is not None]


def drawn(model: Any, device: str, options: Any) -> tuple[torch.Tensor, CacheReport]:
    with torch.no_grad(), cache_session(model, options) as report:
        output = Steps(SHAPE, device).run(model)
    return output, report


def decided(report: CacheReport) -> list[tuple[bool, str, tuple[int, ...]]]:
    images = [image for step in report.steps for image in step.images]
    return [(image.cached, image.reason, tuple(image.pruned_blocks)) for image in images]


@pytest.mark.parametrize(
    "options",
    [FBCacheOptions(**NEVER), DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, **NEVER),
     DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=0, **NEVER)],
    ids=lambda options: options.type,
)  # fmt: skip
def test_deciding_changes_no_bit(device: str, options: Any):
    model = flux(SHAPE, device)
    with torch.no_grad():
        plain = Steps(SHAPE, device).run(model)
    output, report = drawn(model, device, options)
    assert any(image.differences for step in report.steps for image in step.images), "something was compared"
    assert report.computed_block_fraction == [1.0]
    assert torch.equal(output, plain)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.type)
def test_decisions_are_those_of_a_cpu(device: str, options: Any):
    model = flux(SHAPE, "cpu")
    wanted, on_cpu = drawn(model, "cpu", options)
    output, report = drawn(model.to(device), device, options)
    assert decided(report) == decided(on_cpu)
    assert report.computed_block_fraction[0] < 0.9
    difference = (output.cpu().float() - wanted.float()).norm() / wanted.float().norm()
    assert difference < 0.05, "as far as bfloat16 rounds in other places"
    for step, other in zip(report.steps, on_cpu.steps, strict=True):
        for block, (seen, _) in step.images[0].differences.items():
            expected = other.images[0].differences[block][0]
            assert seen == pytest.approx(expected, rel=0.2), "the sums are float32 on both"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.type)
def test_compiled_blocks_decide_alike(device: str, options: Any):
    eager = drawn(flux(SHAPE, device), device, options)
    model = flux(SHAPE, device)
    compile_blocks(model, "inductor" if device == "cuda" else "aot_eager")
    output, report = drawn(model, device, options)
    assert decided(report) == decided(eager[1])
    assert (output.float() - eager[0].float()).norm() / eager[0].float().norm() < 0.05


def test_a_session_leaves_no_memory_behind(gpu: str):
    model = flux(SHAPE, gpu)
    for _ in range(2):  # the first leaves workspaces of libraries
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with torch.no_grad(), cache_session(model, OPTIONS[0]):
            Steps(SHAPE, gpu).run(model)
            held = torch.cuda.memory_allocated()
    gc.collect()
    assert held > before
    assert torch.cuda.memory_allocated() == before


def test_fp8_decides_as_bfloat16_does(gpu: str):
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("FP8 needs compute capability 8.9")
    plain, wanted = drawn(flux(SHAPE, gpu), gpu, OPTIONS[0])
    model = flux(SHAPE, gpu)
    quantize(model, gpu)
    output, report = drawn(model, gpu, OPTIONS[0])
    assert decided(report) == decided(wanted)
    assert 0 < (output.float() - plain.float()).norm() / plain.float().norm() < 0.2
