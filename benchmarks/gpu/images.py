"""Section *images*: FLUX.1-dev on one GPU, eager, compiled and in FP8, with each caching method."""

from __future__ import annotations

import torch

from benchmarks.gpu.measuring import attempt, peak_gib
from benchmarks.gpu.methods import image_times, methods
from benchmarks.gpu.models import compile_blocks, flux, quantize, why_not_fp8
from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Cell, Recorder

__all__ = ["BUILDS", "built", "measure"]

#: Ways to prepare the transformer. FP8 is also compiled: otherwise quantizing activations costs more than it saves.
BUILDS = ("eager", "compiled", "FP8, compiled")
TABLE = "Images on one GPU"


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """Rows for every build with every method."""
    recorder.note(
        "Weights are random, so the inputs determine which steps are reused: all but every fourth, after a warm-up. "
        "Compare seconds at equal shares of blocks; real prompts compute other shares. Without encoding and decoding."
    )
    reference: torch.Tensor | None = None
    for build in BUILDS:
        if build.startswith("FP8") and (why := why_not_fp8(plan, facts)):
            recorder.skip(build, why)
            continue
        with attempt(recorder, build, plan.device):
            reference = _rows(build, plan, recorder, reference)


def built(build: str, plan: Plan) -> torch.nn.Module:
    """The transformer, prepared in one of :data:`BUILDS`."""
    model = flux(plan.shape, plan.device)
    if build.startswith("FP8"):
        quantize(model, plan.device)
    if build.endswith("compiled"):
        # A rehearsal does not need inductor.
        compile_blocks(model, "eager" if plan.small else "inductor")
    return model


def _rows(build: str, plan: Plan, recorder: Recorder, reference: torch.Tensor | None) -> torch.Tensor | None:
    """All methods on one build; other builds are compared with the first build's uncached prediction."""
    model = built(build, plan)
    base: float | None = None
    for name, options in methods(plan.shape).items():
        with attempt(recorder, f"{build}, {name}", plan.device):
            row, output, _ = image_times(model, options, plan)
            if options is None:
                base = float(row["s per image"] or 0)
                row["from eager"] = _difference(output, reference)
                reference = output.float().cpu() if reference is None else reference
            row["speed-up"] = base / float(row["s per image"] or 1) if base is not None else None
            row["peak GiB"] = peak_gib(plan.device)
            recorder.add(TABLE, **{"build": build, "method": name, **_ordered(row)})
    return reference


def _difference(output: torch.Tensor, reference: torch.Tensor | None) -> float | None:
    """Relative to the reference, over all elements."""
    if reference is None:
        return None
    return float(torch.linalg.vector_norm(output.float().cpu() - reference) / torch.linalg.vector_norm(reference))


def _ordered(row: dict[str, Cell]) -> dict[str, Cell]:
    columns = (
        "s per image",
        "least",
        "most",
        "speed-up",
        "blocks computed",
        "peak GiB",
        "first steps, s",
        "from eager",
    )
    return {column: row.get(column) for column in columns}
