"""Checks once, when loading, that a split transformer computes the same as on one rank.

Any version of diffusers or ParaAttention may break a split without an error: SD3 with a plan alone is off by 23 %. So
the whole transformer is called on every rank before it is split, and on all ranks together afterwards, with one small
image (:mod:`raycache.worker.split_inputs`). That costs three calls with a few tokens each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from raycache.worker.split_inputs import INPUTS
from raycache.worker.split_source import Source

__all__ = ["Alone", "SplitWrong", "call_alone", "check_split"]

#: Relative differences that are always allowed, by dtype; bfloat16 and float16 have the next line's.
_FLOOR = {torch.float64: 1e-4, torch.float32: 1e-4}
_FLOOR_OF_HALF = 1e-2
#: Several ranks round differently than one: allow this many times the effect of rounding, at most _MOST.
_TIMES, _MOST = 3.0, 0.1
_LATENTS = ("hidden_states", "x", "audio_hidden_states")


class SplitWrong(RuntimeError):
    """A transformer computes something else on all ranks together than on one."""


@dataclass(frozen=True)
class Alone:
    """The result of one rank.

    Attributes:
        inputs: arguments of the transformer's forward, for one image.
        output: its prediction.
        tolerance: relative difference up to which predictions count as equal.
    """

    inputs: dict[str, Any]
    output: torch.Tensor
    tolerance: float


def call_alone(transformer: Any, ranks: int) -> Alone:
    """Call a transformer that is not split yet; no other rank is needed.

    How far rounding moves the prediction differs between models and does not follow from their dtype: bfloat16 moves
    that of one with 57 blocks by more than 1 %. So it is measured, with latents changed in their last bit.

    Args:
        ranks: number of ranks that it will be split over.

    Raises:
        KeyError: there are no inputs for this class.
        SplitWrong: the call failed, or its output is all zeros or not finite, so nothing can be compared with it.
    """
    name = type(transformer).__name__
    given = INPUTS[name](Source(transformer.config, ranks, torch.Generator().manual_seed(0)))
    inputs = {key: _as(value, transformer) for key, value in given.items()}
    try:
        output = _call(transformer, inputs)
    except Exception as error:
        raise SplitWrong(
            f"{name} cannot be called with inputs made from its config ({error}), so its split over {ranks} ranks "
            "cannot be checked; use one rank"
        ) from error
    if not (bool(output.isfinite().all()) and bool(output.any())):
        raise SplitWrong(
            f"{name} predicts only zeros, or something that is not finite, for small random inputs in "
            f"{output.dtype}: its split over {ranks} ranks cannot be checked; use one rank"
        )
    nudged = {key: _nudged(value) if key in _LATENTS else value for key, value in inputs.items()}
    rounding = _difference(_call(transformer, nudged), output)
    tolerance = min(max(_FLOOR.get(output.dtype, _FLOOR_OF_HALF), _TIMES * rounding), _MOST)
    return Alone(inputs, output, tolerance)


def check_split(transformer: Any, alone: Alone, group: dist.ProcessGroup, family: str) -> float:
    """Call the same transformer, now split, on all ranks of ``group``.

    Args:
        family: name of the model's family, for the error message.

    Returns:
        The largest relative difference on any rank, the same on all.

    Raises:
        SplitWrong: the difference exceeds the tolerance (then on all ranks), or the call failed.
    """
    name, ranks = type(transformer).__name__, dist.get_world_size(group)
    try:
        output = _call(transformer, alone.inputs)
    except Exception as error:
        raise SplitWrong(f"{family}: {name} over {ranks} ranks failed in its first call: {error}") from error
    own = _difference(output, alone.output)
    seen = torch.tensor([own, own / alone.tolerance, alone.tolerance], device=alone.output.device)
    dist.all_reduce(seen, dist.ReduceOp.MAX, group)
    difference, times, tolerance = seen.tolist()
    if times > 1:
        raise SplitWrong(
            f"{family}: {name} over {ranks} ranks does not compute the same as on one: a small image differs by "
            f"{difference:.2g} of its size, rounding explains {tolerance:.2g} at most. Its images would be wrong. Use "
            "one rank (parallel.ranks_per_replica: 1), or the diffusers and para-attn that this release was tested with"
        )
    return difference


@torch.no_grad()
def _call(transformer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The prediction, including audio.

    Compiled blocks run uncompiled here: otherwise they would be compiled for these small shapes first.
    """
    with torch.compiler.set_stance("force_eager"):
        output, *more = transformer(**inputs, return_dict=False)
    whole = torch.stack(output) if isinstance(output, list) else output
    return torch.cat([part.flatten() for part in (whole, *more)]) if more else whole


def _difference(output: torch.Tensor, wanted: torch.Tensor) -> float:
    """Difference relative to ``wanted``, over all elements; infinite if it is not a number."""
    if output.shape != wanted.shape:
        return float("inf")
    size = torch.linalg.vector_norm(wanted.float())
    difference = float(torch.linalg.vector_norm(output.float() - wanted.float()) / size)
    return difference if difference == difference else float("inf")


def _nudged(value: Any) -> Any:
    """Every other element increased by the smallest step of its dtype."""
    if isinstance(value, list):
        return [_nudged(part) for part in value]
    sign = torch.arange(value.numel(), device=value.device).reshape(value.shape) % 2
    return value * (1 + torch.finfo(value.dtype).eps * sign).to(value.dtype)


def _as(value: Any, transformer: Any) -> Any:
    """On the transformer's device and, if floating point, in its dtype."""
    if isinstance(value, list | tuple):
        return type(value)(_as(part, transformer) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(transformer.device, transformer.dtype if value.is_floating_point() else None)
