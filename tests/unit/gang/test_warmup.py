"""What a gang draws before it is ready, and what it knows then."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raycache.gang import incarnation as module
from raycache.gang.costs import Costs, Work
from raycache.gang.incarnation import Incarnation
from raycache.gang.warmup import warm_ups
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import JobOutput
from raycache.protocol.tick import Tick, TickReport
from raycache.settings import AppSettings
from raycache.size import Size

MODEL = Capabilities("noise", 57, 24, 512, "FluxPipeline", 16)


def settings(*sizes: str, ranks: int = 2, **sections: Any) -> AppSettings:
    warmup = [{"size": size} for size in sizes]
    parallel = {"ranks_per_replica": ranks}
    model = {"path": "noise", "compile": False}
    return AppSettings.model_validate({"model": model, "parallel": parallel, "warmup": warmup} | sections)


class Ranks:
    """In place of rank actors: ten steps of 1024x1024 take a second."""

    stages: dict[str, float]

    def __init__(self, *_: object) -> None:
        self.drawn: list[Any] = []
        idle = SimpleNamespace(jobs=(), phase="idle", step=0)
        ranks = [SimpleNamespace(known=idle)]
        self.stages, self.detector = {}, SimpleNamespace(ranks=ranks, work_sent=lambda now: None)

    def load(self, *_: object) -> tuple[tuple[str, str], Capabilities]:
        return ("", "noise"), MODEL

    def tick(self, tick: Tick) -> dict[Any, int]:
        told = TickReport(tick.number)
        self.drawn += tick.start
        for job in tick.start:
            self.left = job.num_inference_steps
        for (name,) in tick.calls:
            self.left -= 1
            told.done += [name] * (self.left == 0)
        for name in tick.end:
            assert self.left == 0
            told.outputs[name] = output = self.output(self.drawn[-1])
            told.decoded[name], told.decode_s[name] = {0: output.images[0]}, output.decode_s
        return {Reference(told): 0}

    def output(self, job: Any) -> JobOutput:
        images, tokens = len(job.images), job.size.pixels // 256
        seconds = (100 + images * (MODEL.text_tokens + tokens)) / 4708 * job.num_inference_steps / 10
        return JobOutput(np.zeros((1, 1, 1, 3), np.uint8), None, 0.1, seconds, (100 + images * tokens) / 4196 * 0.2)

    def poll(self, step_timeout_s: float) -> None: ...

    def settle(self, tick: object) -> None: ...


class Reference:
    """In place of a reference to a rank's answer."""

    def __init__(self, answer: object) -> None:
        self.answer = answer


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "WorkerGroup", Ranks)
    ray = SimpleNamespace(wait=lambda refs, timeout, num_returns: (refs, []), get=lambda ref: ref.answer)
    monkeypatch.setattr(module, "ray", ray)
    return lambda settings, costs: Incarnation(settings, None, "g", lambda: None, costs)


def test_declared_shapes_are_drawn_once_and_teach_what_jobs_cost(life: Any):
    costs, chosen = Costs(), settings("1024x1024", "1024x512")
    first = life(chosen, costs)
    first.assemble(None, 10)
    drawn = first._actors.drawn
    assert [str(job.size) for job in drawn] == ["1024x1024", "1024x512", "64x64", "64x64"]
    assert [job.num_inference_steps for job in drawn] == [10, 10, 2, 2], "past the cache's warm-up; probes need not"
    assert [len(job.images) for job in drawn] == [1, 1, 1, 4], "what a row more costs"
    work = Work(Size(1024, 1024), 1, 10, chosen.cache)
    assert costs.seconds(work) == pytest.approx(1.3, rel=0.15)
    again = life(chosen, costs)
    again.assemble(("", "noise"), 10)
    assert [str(job.size) for job in again._actors.drawn] == ["1024x1024", "1024x512"], "known by now"


def test_without_declared_shapes_a_probe_teaches(life: Any):
    costs = Costs()
    first = life(settings(), costs)
    first.assemble(None, 10)
    assert [str(job.size) for job in first._actors.drawn] == ["64x64"] * 3, "the first one loads libraries"
    assert costs.known
    assert first.timeouts.seconds(first._actors.drawn[:1], "decode") == 5.0


@pytest.mark.parametrize(
    ("declared", "text", "probe"),
    [("1024x1024", 512, "64x64"), ("256x256", 512, "1024x1024"), ("64x64", 64, "256x256"), ("128x128", 64, "256x256")],
)
def test_the_probe_is_far_from_what_is_declared(declared: str, text: int, probe: str):
    model = Capabilities("noise", 57, 24, text, "FluxPipeline", 16)
    last = warm_ups(settings(declared), model, probe=True)[-2].job
    assert str(last.size) == probe


@pytest.mark.parametrize("ranks", range(1, 9))
def test_the_probe_can_be_drawn_by_any_number_of_ranks(ranks: int):
    for declared in ("1024x1024", "64x64"):
        last = warm_ups(settings(declared, ranks=ranks), MODEL, probe=True)[-2].job
        assert last.size.tokens(16) % ranks == 0


def test_the_probe_obeys_the_limits():
    small = settings("128x128", limits={"max_pixels": 128 * 128})
    assert all(each.job.size.pixels <= 128 * 128 for each in warm_ups(small, MODEL, probe=True))


@pytest.mark.parametrize(("declared", "drawn"), [([], [1, 4]), ([1], [1, 4]), ([2], [2, 1]), ([1, 3, 1], [1, 3, 1])])
def test_compiled_blocks_meet_one_image_and_several(declared: list[int], drawn: list[int]):
    """Each kind has a graph of its own, compiled before any user waits. Compiling says nothing of later times."""
    warmup = [{"size": "128x128", "n": images} for images in declared]
    for compiles, images in ((True, drawn), (False, declared)):
        asked = settings(warmup=warmup, model={"path": "noise", "compile": compiles})
        first, probed = (warm_ups(asked, MODEL, probe=probe) for probe in (False, True))
        assert [len(each.job.images) for each in first] == images
        assert [len(each.job.images) for each in first if each.teaches] == declared
        assert [len(each.job.images) for each in probed if each.teaches] == [*declared, 1, 4]
        assert len(probed) == len(first) + 2 + (not compiles and not declared)


@pytest.mark.parametrize(
    ("max_rows", "max_images", "drawn"), [(1, 1, [1]), (1, 2, [1, 4]), (2, 1, [1, 4]), (8, 4, [1, 4])]
)
@pytest.mark.parametrize("declared", [[], ["128x128"]])
def test_several_images_are_drawn_only_where_a_call_may_hold_them(
    declared: list[str], max_rows: int, max_images: int, drawn: list[int]
):
    """Neither their graph nor their costs matter to others. A request's own images stay together at any max_rows."""
    parallel, limits = {"ranks_per_replica": 2, "max_rows": max_rows}, {"max_images": max_images}
    asked = settings(*declared, model={"path": "noise", "compile": True}, parallel=parallel, limits=limits)
    first, probed = (warm_ups(asked, MODEL, probe=probe) for probe in (False, True))
    assert [len(each.job.images) for each in first] == drawn
    assert [len(each.job.images) for each in probed] == [*drawn, *drawn]


@pytest.mark.parametrize(("wanted", "made"), [(1, 5), (5, 5), (6, 9), (81, 81)])
def test_a_model_of_videos_makes_some_of_the_declared_length(wanted: int, made: int):
    """A legal one, not shorter: what is allocated for it is enough for what was declared."""
    model = replace(MODEL, pipeline="WanPipeline", tasks=("text-to-video",), frame_step=4, fps=16.0)
    shapes = settings(warmup=[{"size": "64x64", "num_frames": wanted}])
    declared, *probes = [each.job for each in warm_ups(shapes, model, probe=True)]
    assert (declared.inputs.task, declared.inputs.num_frames) == ("text-to-video", made)
    assert {job.inputs.num_frames for job in probes} == {5}


@pytest.mark.parametrize("task", ["edit", "inpaint", "image-to-image", "image-to-video"])
def test_a_model_that_needs_an_image_is_given_one(task: Any):
    model = replace(MODEL, tasks=(task,), frame_step=4 if task == "image-to-video" else 0)
    (job,) = [each.job for each in warm_ups(settings("64x96"), model, probe=False)]
    assert job.inputs.images[0].shape == (96, 64, 3)
    assert (job.inputs.mask is not None) == (task == "inpaint")
