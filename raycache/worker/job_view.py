"""One job's own view of a pipeline: identical to the real one, but the stepper makes its heavy calls.

Each denoiser and the VAE are replaced by an object that passes everything on except the call: there the job is
suspended. So a pipeline runs unmodified, from its arguments to its images, and its own last part (unpacking, scaling,
trimming frames) is all that is needed to decode its latents.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_core.signatures import parameters_of
from raycache.models.denoisers import denoisers_of

__all__ = ["Handed", "JobView", "arguments_by_row", "decode_rows", "one_after_the_other"]

#: Components that keep state between the steps of a call, such as a guider with a running mean.
_STATEFUL = ("scheduler", "guider", "ocr_guider")
#: The cache context used while none is open: its name and extra arguments.
_DEFAULT: tuple[str, dict[str, Any]] = ("default", {})


@dataclass(frozen=True)
class Handed:
    """A call whose result a job waits for.

    Attributes:
        of: name of the component; ``vae`` for decoding.
        context: name of its cache context; told: that context's other arguments (``step_index``).
    """

    of: str
    kwargs: Mapping[str, Any]
    args: tuple[Any, ...] = ()
    context: str = "default"
    told: Mapping[str, Any] = field(default_factory=dict)


class JobView:
    """A copy of ``pipe`` for one job, with a scheduler and guiders of its own.

    Args:
        hand_over: takes the call that the job waits for, and returns its result.
        vae_lock: held around every use of the VAE: some keep the state of a call in the module.

    Attributes:
        pipe: the copy.
        tail: the denoisers were called for the last time; from now on decoding runs immediately.
    """

    def __init__(self, pipe: Any, hand_over: Callable[[Handed], Any], vae_lock: threading.Lock) -> None:
        self.hand_over, self.vae_lock, self.tail = hand_over, vae_lock, False
        self.pipe = own = copy.copy(pipe)
        # Bypasses DiffusionPipeline.__setattr__, which would write to the config that all copies share.
        for name in _STATEFUL:
            if (component := getattr(pipe, name, None)) is not None:
                object.__setattr__(own, name, copy.deepcopy(component))
        for name, module in denoisers_of(pipe).items():
            object.__setattr__(own, name, _Denoiser(module, name, self))
        if getattr(pipe, "vae", None) is not None:
            object.__setattr__(own, "vae", _Decoder(pipe.vae, self))


class _InPlaceOf:
    """Passes on every attribute of ``real``, including its class; only a call is handled differently."""

    def __init__(self, real: Any, view: JobView) -> None:
        self._real, self._view = real, view

    def __getattribute__(self, name: str) -> Any:
        # Pipelines check a component's class, and look for modules among their components.
        return type(self._real) if name == "__class__" else object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Denoiser(_InPlaceOf):
    def __init__(self, real: Any, name: str, view: JobView) -> None:
        super().__init__(real, view)
        self._name, self._context = name, _DEFAULT

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(parameters_of(type(self._real).forward), args, strict=False)) | kwargs
        context, told = self._context
        return self._view.hand_over(Handed(self._name, named, context=context, told=told))

    @contextmanager
    def cache_context(self, name: str, **told: Any) -> Iterator[None]:
        before, self._context = self._context, (name, told)
        try:
            yield
        finally:
            self._context = before


class _Decoder(_InPlaceOf):
    def encode(self, *args: Any, **kwargs: Any) -> Any:
        with self._view.vae_lock:
            return self._real.encode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        if not self._view.tail:
            self._view.tail = True
            return self._view.hand_over(Handed("vae", kwargs, args))
        with self._view.vae_lock:
            return self._real.decode(*args, **kwargs)


def decode_rows(vae: Any, handed: Handed, images: int, rows: Sequence[int]) -> Any:
    """Decode these images of a handed-over call one by one, so that no image depends on the others of its batch.

    Args:
        images: number of the job's images; latents [images * k, ...] have k rows for each.
        rows: which of the job's images; at least one.

    Returns:
        What ``vae.decode`` returns, for these images only.

    Raises:
        ValueError: the rows of the latents do not divide evenly among the images.
    """
    own = arguments_by_row(handed, images)
    return one_after_the_other([vae.decode(*own[row][0], **own[row][1]) for row in rows])


def arguments_by_row(handed: Handed, images: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Split the arguments of a handed-over call into those of each image.

    Raises:
        ValueError: the rows of the latents do not divide evenly among the images.
    """
    args, kwargs = handed.args, handed.kwargs
    latents = args[0] if args else next(iter(kwargs.values()))
    each, over = divmod(len(latents), images)
    if over or not each:
        raise ValueError(f"{len(latents)} rows of latents for {images} images: they must divide evenly")

    def of(row: int, value: Any) -> Any:
        own = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == len(latents)
        return value[row * each : (row + 1) * each] if own else value

    return [
        (tuple(of(row, value) for value in args), {name: of(row, value) for name, value in kwargs.items()})
        for row in range(images)
    ]


def one_after_the_other(parts: Sequence[Any]) -> Any:
    """Join the results of several calls into one: tensors, tuples of them, or diffusers' output objects."""
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts))
    if isinstance(first, tuple):
        return tuple(one_after_the_other(own) for own in zip(*parts, strict=True))
    return type(first)(**{name: one_after_the_other([part[name] for part in parts]) for name in first})
