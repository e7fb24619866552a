"""Calls of two jobs as one, for every transformer: each decides, and draws, what it does alone."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from cache_core import CacheReport, cache_session, job_call, job_session, joined, parse_options, supported_models
from cache_core.signatures import parameters_of
from raycache.worker.call_rows import ALONE, STACKED
from raycache.worker.stacking import join_key, stack_arguments, unstack
from raycache.worker.stepper import Stepper
from tests.helpers.conditioned_images import Images
from tests.helpers.guided_pipes import GUIDED, draw_guided
from tests.helpers.tiny_transformers import TINY, shared

COMMON = {"Fn_compute_blocks": 1, "warmup_steps": 1, "residual_diff_threshold": 0.2}
DBCACHE: dict[str, Any] = {"type": "DBCache", "Bn_compute_blocks": 1} | COMMON
DBPRUNE: dict[str, Any] = {"type": "DBPrune", "Bn_compute_blocks": 0} | COMMON
JOINABLE = [name for name in TINY if name.partition("+")[0] in STACKED]
#: Rows in lists, in layers, and equal ones.
QUICK = ("Flux2Transformer2DModel", "ZImageTransformer2DModel", "QwenImageTransformer2DModel")


@dataclass
class Job:
    """Images of one job. Their texts have as many valid tokens each, and their moods change from step to step."""

    name: str
    seeds: tuple[int, ...]
    steps: int
    session: Any = None
    outputs: list[torch.Tensor] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        step = len(self.outputs)
        drifts = tuple(1.0 if (step + seed) % 3 == 0 else 0.001 for seed in self.seeds)
        return TINY[self.name].inputs(Images(self.seeds, drifts, step)) | {"return_dict": False}

    def take(self, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        tensors = [torch.stack(part) if isinstance(part, list) else part for part in parts if part is not None]
        self.outputs.append(torch.cat([tensor.flatten(1) for tensor in tensors], dim=1))


def jobs_of(name: str) -> list[Job]:
    """Two rows beside one that begins two steps later; the longest text is as long in both."""
    return [Job(name, (1, 3), 5), Job(name, (6,), 4)]


def decisions(report: CacheReport, row: int) -> list[tuple[Any, ...]]:
    return [(d.cached, d.reason, tuple(d.pruned_blocks)) for step in report.steps for d in [step.images[row]]]


def draw_alone(model: nn.Module, job: Job, options: Any) -> CacheReport:
    with torch.no_grad(), cache_session(model, options) as report:
        while len(job.outputs) < job.steps:
            job.take(model(**job.arguments()))
    return report


def draw_together(model: nn.Module, jobs: list[Job], options: Any) -> int:
    """Every step, in one call where both are under way; how many calls had both."""
    shared = 0
    with torch.no_grad(), ExitStack() as stack:
        for job in jobs:
            job.session = stack.enter_context(job_session(model, options, name=str(job.seeds)))
        now = 0
        while active := [job for k, job in enumerate(jobs) if len(job.outputs) < job.steps and now >= 2 * k]:
            each = [job.arguments() for job in active]
            keys = [join_key(model, own) for own in each]
            assert None not in keys
            assert len(set(keys)) == 1
            shared += len(active) > 1
            calls = [job_call(job.session, model, (), own) for job, own in zip(active, each, strict=True)]
            with joined(model, calls):
                output = model(**stack_arguments(model, each))
            for job, part in zip(active, unstack(output, [call.rows for call in calls]), strict=True):
                job.take(part)
            now += 1
    return shared


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(pytest.param(name, DBCACHE, id=name, marks=() if name in QUICK else pytest.mark.slow) for name in JOINABLE),
        pytest.param("ZImageTransformer2DModel", DBPRUNE, id="pruned"),
    ],
)
def test_two_jobs_at_different_steps_draw_and_decide_as_alone(name: str, options: dict[str, Any]):
    model, together = shared(name), jobs_of(name)
    assert draw_together(model, together, options) >= 2
    seen = set()
    for job, alone in zip(together, jobs_of(name), strict=True):
        report = draw_alone(model, alone, options)
        for row in range(len(job.seeds)):
            assert decisions(job.session.report, row) == decisions(report, row)
            seen |= {cached or bool(pruned) for cached, _, pruned in decisions(report, row)}
        for ours, theirs in zip(job.outputs, alone.outputs, strict=True):
            assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5
    assert seen == {True, False}, "both ways are taken"


def test_what_is_one_for_all_rows_is_given_to_each():
    """Pipelines may bring one timestep, or a number, for a batch; beside other jobs each row needs its own."""
    one = call_of(FLUX, timestep=torch.tensor([0.5]), guidance=torch.tensor(3.0))
    other = Job(FLUX, (6,), 1).arguments() | {"timestep": torch.tensor(0.25), "guidance": torch.tensor([4.0])}
    assert joins(FLUX, one, other)
    stacked = stack_arguments(shared(FLUX), [one, other])
    assert stacked["timestep"].tolist() == [0.5, 0.5, 0.25]
    assert stacked["guidance"].tolist() == [3.0, 3.0, 4.0]


def test_every_supported_transformer_joins_or_has_a_reason():
    classes = {name for group in supported_models().values() for name in group}
    assert classes == STACKED.keys() | ALONE.keys()
    assert STACKED.keys().isdisjoint(ALONE)


@pytest.mark.parametrize("name", STACKED)
def test_a_name_in_the_table_is_one_of_the_call(name: str):
    rows = STACKED[name]
    taken = set(parameters_of(getattr(diffusers, name).forward))
    assert {*rows.each, *rows.same, *rows.layers, *rows.whole} <= taken


FLUX = "FluxTransformer2DModel"


def call_of(name: str, **others: Any) -> dict[str, Any]:
    return Job(name, (1, 3), 1).arguments() | others


def joins(name: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    keys = [join_key(shared(name), call) for call in (one, other)]
    return None not in keys and keys[0] == keys[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "others"),
    [
        (FLUX, {"encoder_hidden_states": torch.zeros(2, 7, 16), "txt_ids": torch.zeros(7, 3)}),
        (FLUX, {"img_ids": torch.ones(16, 3)}),
        (FLUX, {"guidance": torch.ones(2)}),
        (FLUX, {"hidden_states": torch.zeros(2, 16, 8, dtype=torch.float64)}),
        (FLUX, {"joint_attention_kwargs": {"scale": 0.5}}),
        ("QwenImageTransformer2DModel", {"img_shapes": [[(1, 2, 8)]] * 2}),
        ("QwenImageTransformer2DModel", {"encoder_hidden_states_mask": None}),
        ("QwenImage21Transformer2DModel", {"img_mask": torch.tensor([[True] * 4 + [False] * 6] * 2)}),
        ("LTXVideoTransformer3DModel", {"width": 2, "height": 8}),
        ("LTXVideoTransformer3DModel", {"rope_interpolation_scale": (1.0, 2.0, 2.0)}),
        # Of all rows the longest text decides how long each is.
        ("Lumina2Transformer2DModel", {"encoder_attention_mask": torch.arange(6).expand(2, 6) < 3}),
        ("ZImageTransformer2DModel", {"cap_feats": [torch.zeros(5, 16), torch.zeros(33, 16)]}),
        ("ZImageTransformer2DModel", {"x": [torch.zeros(4, 1, 8, 4)] * 2}),
        # 2 tokens of gist where the others have 6: padded, and behind the image.
        ("BriaFibo2Transformer2DModel", {"encoder_attention_mask": torch.arange(6) < torch.tensor([[2], [6]])}),
        # One row with an image makes that of the others count, which is zeros.
        ("HunyuanVideo15Transformer3DModel", {"image_embeds": torch.ones(2, 2, 8)}),
    ],
)
def test_what_differs_in_more_than_rows_does_not_join(name: str, others: dict[str, Any]):
    assert joins(name, call_of(name), call_of(name))
    assert not joins(name, call_of(name), call_of(name, **others))


@pytest.mark.parametrize(
    "others",
    [
        {"joint_attention_kwargs": {"ip_adapter_image_embeds": [torch.zeros(2, 1, 4)]}},
        {"controlnet_block_samples": [torch.zeros(2, 16, 32)]},
        {"img_ids": torch.stack([torch.zeros(16, 3), torch.ones(16, 3)])},
        {"kv_cache": object()},
    ],
    ids=lambda others: next(iter(others)),
)
def test_a_call_with_what_is_not_described_stays_alone(others: dict[str, Any]):
    """Also beside its equal: two requests may be the same to the last bit, and each needs its own rows."""
    name = "FluxTransformer2DModel" if "kv_cache" not in others else "Flux2Transformer2DModel"
    assert join_key(shared(name), call_of(name)) is not None
    assert join_key(shared(name), call_of(name, **others)) is None


def test_positions_with_rows_join_whatever_the_number_of_rows():
    """As FLUX.2's pipelines bring them."""
    name, places = "Flux2Transformer2DModel", torch.rand(16, 4)
    one = Job(name, (1,), 1).arguments() | {"img_ids": places[None]}
    two = call_of(name, img_ids=places.repeat(2, 1, 1))
    assert joins(name, one, two)
    stacked = stack_arguments(shared(name), [one, two])
    assert torch.equal(stacked["img_ids"], places.repeat(3, 1, 1))
    assert torch.equal(stacked["txt_ids"], one["txt_ids"])
    assert not joins(name, one, two | {"img_ids": places.repeat(2, 1, 1) + 1})


def test_two_rows_of_an_image_are_told_from_one():
    """Wan's first and last frame are embedded as two rows."""
    name = "WanTransformer3DModel"
    once, twice = (call_of(name, encoder_hidden_states_image=torch.ones(rows, 4, 8)) for rows in (2, 4))
    single = Job(name, (1,), 1).arguments()
    assert not joins(name, once, twice)
    assert joins(name, twice, single | {"encoder_hidden_states_image": torch.zeros(2, 4, 8)})
    assert joins(name, once, single | {"encoder_hidden_states_image": torch.zeros(1, 4, 8)})
    assert join_key(shared(name), call_of(name, encoder_hidden_states_image=torch.ones(3, 4, 8))) is None


def test_positions_that_are_written_over_are_others():
    call = call_of(FLUX)
    model = shared(FLUX)
    before = join_key(model, call)
    assert join_key(model, call) == before
    call["img_ids"].add_(1)
    assert join_key(model, call) != before
    with torch.inference_mode():
        made = call | {"img_ids": call["img_ids"] - 1}
    assert join_key(model, made) == before


def test_an_unknown_transformer_stays_alone():
    assert join_key(nn.Linear(2, 2), {"hidden_states": torch.zeros(1, 2)}) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDED)
def test_pipelines_that_guide_in_one_batch_share_calls(name: str):
    """Each job has two rows; Z-Image's pipeline calls its transformer by position."""
    pipe = GUIDED[name][0]()
    stepper, ended, shared = Stepper(pipe), {}, 0
    draws = {str(seed): functools.partial(draw_guided, name, seeds=(seed,), num_inference_steps=6) for seed in (1, 2)}
    for now in range(20):
        if now in (0, 2):
            draw = draws["1" if now == 0 else "2"]
            stepper.start("1" if now == 0 else "2", lambda own, draw=draw: draw(pipe=own), parse_options(DBCACHE))
        keys = stepper.waiting
        assert None not in keys.values()
        assert len(set(keys.values())) <= 1
        shared += len(keys) == 2
        ended |= {one.name: one for one in stepper.step(list(keys))}
        if len(ended) == 2:
            break
    assert shared == 4
    for own, draw in draws.items():
        with cache_session(pipe.transformer, DBCACHE) as report:
            expected = draw(pipe=pipe)
        assert float((ended[own].result - expected).norm() / expected.norm()) <= 1e-4
        for row in range(2):
            assert decisions(ended[own].report, row) == decisions(report, row)
