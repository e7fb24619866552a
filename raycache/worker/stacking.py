"""Which arguments of a transformer's call have a row for each image, so that calls of different jobs may be stacked.

A table by transformer class. What is not in it (position ids, sizes, what adapters are given) must be equal, or two
calls do not join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["join_key", "stack_arguments", "unstack"]

STACKED: dict[str, frozenset[str]] = {
    "FluxTransformer2DModel": frozenset(
        {"hidden_states", "timestep", "guidance", "pooled_projections", "encoder_hidden_states"}
    ),
    "SD3Transformer2DModel": frozenset({"hidden_states", "timestep", "pooled_projections", "encoder_hidden_states"}),
    "WanTransformer3DModel": frozenset(
        {"hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image"}
    ),
}


def join_key(transformer: object, kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What is equal in calls that may be stacked; None where this call stays alone (an unknown transformer).

    Shapes count without their rows. Of tensors that are not stacked the values count, small as they are.
    """
    stacked = STACKED.get(type(transformer).__name__)
    if stacked is None:
        return None
    return tuple((name, _key(kwargs[name], name in stacked)) for name in sorted(kwargs))


def stack_arguments(transformer: object, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One call's arguments from those of several with equal :func:`join_key`: rows one after the other, job by job."""
    if len(calls) == 1:
        return dict(calls[0])
    stacked = STACKED[type(transformer).__name__]
    return {
        name: torch.cat([call[name] for call in calls]) if name in stacked and value is not None else value
        for name, value in calls[0].items()
    }


def unstack(output: Any, rows: Sequence[int]) -> list[Any]:
    """Each job's part of what a transformer returned: a tensor, a tuple of them, or a diffusers output object."""
    if isinstance(output, torch.Tensor):
        return list(output.split(list(rows)))
    if isinstance(output, tuple):
        return [tuple(part) for part in zip(*(unstack(own, rows) for own in output), strict=True)]
    fields = {name: unstack(value, rows) for name, value in output.items()}
    return [type(output)(**{name: parts[k] for name, parts in fields.items()}) for k in range(len(rows))]


def _key(value: Any, stacked: bool) -> Any:
    if isinstance(value, torch.Tensor):
        shape = tuple(value.shape)[1:] if stacked else tuple(value.shape)
        return shape, value.dtype, None if stacked else tuple(value.flatten().tolist())
    return repr(value)
