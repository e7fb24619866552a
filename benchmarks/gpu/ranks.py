"""Section *ranks*: the same images over 1 to 8 ranks; as in the service, blocks are compiled and then split."""

from __future__ import annotations

from benchmarks.gpu.images import BUILDS, built
from benchmarks.gpu.measuring import attempt, peak_gib
from benchmarks.gpu.methods import METHODS, image_times, methods
from benchmarks.gpu.models import why_not_fp8
from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.spawning import run_ranks

__all__ = ["measure"]

TABLE = "Images over ranks"


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """Rows for every number of ranks, with fewer builds and methods in a quick run."""
    # A rehearsal of the section on images already covers one rank.
    worlds = plan.worlds(len(facts.devices))[1 if plan.small else 0 :]
    builds = [build for build in BUILDS if not (plan.quick and build != "eager")]
    for build in builds:
        if build.startswith("FP8") and (why := why_not_fp8(plan, facts)):
            recorder.skip(build, why)
            continue
        for world in worlds:
            with attempt(recorder, f"{build}, {world} ranks", plan.device):
                run_ranks(_images, world, plan, build, recorder)


def _images(rank: int, world: int, plan: Plan, build: str, recorder: Recorder) -> None:
    from raycache.worker.context_parallel import parallelize

    model = built(build, plan)
    group = parallelize(model) if world > 1 else None
    for name, options in methods(plan.shape).items():
        if plan.quick and name not in METHODS[:2]:
            continue
        row, _, report = image_times(model, options, plan, group)
        wait = report.collective_wait_s if report is not None and world > 1 else None
        if rank == 0:
            columns = {column: row[column] for column in ("s per image", "least", "most", "blocks computed")}
            columns |= {"waited for decisions, s": wait, "peak GiB": peak_gib(plan.device)}
            recorder.add(TABLE, ranks=world, build=build, method=name, **columns)
