"""The end of each step of a pipeline's call, reported in the same way for pipelines with and without a callback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from raycache.models.arguments import parameters_of_call

__all__ = ["StepEnds"]

#: (the job's own view, step from 0, latents before, latents after) -> latents to continue with, or None.
Told = Callable[[Any, int, torch.Tensor, torch.Tensor], torch.Tensor | None]


class StepEnds:
    """Calls ``told`` after each step of the next call of ``pipe``.

    Args:
        pipe: a job's own view of a pipeline, with a scheduler of its own.

    Attributes:
        arguments: the arguments for that call.
    """

    def __init__(self, pipe: Any, told: Told) -> None:
        self._pipe, self._told = pipe, told
        self._before: torch.Tensor | None = None
        self._steps = 0
        self.arguments: dict[str, Any] = {}
        if hasattr(pipe, "prepare_latents"):
            object.__setattr__(pipe, "prepare_latents", self._noted(pipe.prepare_latents))
        if "callback_on_step_end" in parameters_of_call(pipe):
            self.arguments = {"callback_on_step_end": self._called_back}
        elif pipe.scheduler is not None:
            pipe.scheduler.step = self._watched(pipe.scheduler.step)

    def _noted(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(prepare)
        def prepared(*args: Any, **kwargs: Any) -> Any:
            made = prepare(*args, **kwargs)
            self._before = made[0] if isinstance(made, tuple) else made
            return made

        return prepared

    def _called_back(self, _: Any, step: int, __: Any, state: dict[str, Any]) -> dict[str, Any]:
        """diffusers' ``callback_on_step_end``."""
        after = state["latents"]
        changed = self._ended(step, after)
        return {} if changed is None else {"latents": changed}

    def _watched(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """For pipelines without a callback."""

        @functools.wraps(step)
        def stepped(*args: Any, **kwargs: Any) -> Any:
            made = step(*args, **kwargs)
            changed = self._ended(self._steps, made[0])
            if changed is None:
                return made
            return (changed, *made[1:]) if isinstance(made, tuple) else type(made)(prev_sample=changed)

        return stepped

    def _ended(self, step: int, after: torch.Tensor) -> torch.Tensor | None:
        before = after if self._before is None or self._before.shape != after.shape else self._before
        changed = self._told(self._pipe, step, before, after)
        self._before, self._steps = after if changed is None else changed, step + 1
        return changed
