"""Compiling transformer blocks, so that two graphs of a class serve any size and any number of images.

What was compiled is kept on disk: the next process traces the blocks again, but finds their code there.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo as dynamo
import torch.distributed as dist
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from cache_core.signatures import parameters_of
from raycache.models.denoisers import blocks_of

__all__ = ["BlockCompiler", "keep_compiled"]

_logger = logging.getLogger("raycache.rank")

Forward = Callable[..., Any]

#: Where torch keeps what it compiled. If nothing is said, it sets this to a folder of its own in /tmp when Dynamo is
#: imported.
_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled(folder: Path) -> None:
    """Keep what this process compiles in ``folder``, unless the environment names another than torch's own.

    Must be called before anything is compiled. Ranks, models and versions of torch may share a folder.
    """
    if os.environ.get(_FOLDER) not in (None, os.path.abspath(default_cache_dir())):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _logger.warning(
            "%s cannot hold compiled blocks (%s): set model.cache_dir or %s, or they are compiled again after the next "
            "start of this node",
            folder,
            error,
            _FOLDER,
        )
        return
    os.environ[_FOLDER] = str(folder)


class BlockCompiler:
    """Compiles each block's forward by itself, so that decisions of the cache stay outside.

    All blocks of a class share their graphs: one for calls with one image, one for calls with several. Where compiling
    fails, all blocks run uncompiled from then on; a block that fails has not run then, so the other ranks, which wait
    for its messages, notice nothing.

    Args:
        backend: of ``torch.compile``.

    Attributes:
        failure: why blocks run uncompiled; empty while compiling has not failed.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backend = backend
        self.failure = ""

    def compile(self, denoiser: Any) -> None:
        """Compile the blocks of ``denoiser`` when they are called next."""
        for block in blocks_of(denoiser):
            module: Any = block.module  # a method is exchanged, which types do not foresee
            module.forward = self._compiled(module.forward)

    def give_up(self, why: str) -> None:
        """Run all blocks uncompiled from now on."""
        self.failure = self.failure or why

    def agree(self, group: dist.ProcessGroup | None) -> None:
        """Run all blocks uncompiled if compiling failed on any rank of ``group``; all of them call this at once."""
        failures = [self.failure]
        if group is not None:
            failures = [""] * dist.get_world_size(group)
            dist.all_gather_object(failures, self.failure, group)
        if any(failures):
            why = "; ".join(f"rank {rank}: {failure}" for rank, failure in enumerate(failures) if failure)
            _logger.warning("Transformer blocks run uncompiled, which is slower. Compiling failed: %s", why)
            self.give_up(why)

    def _compiled(self, forward: Forward) -> Forward:
        compiled = torch.compile(forward, backend=self._backend)
        names = parameters_of(getattr(forward, "__func__", forward))

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.failure:
                try:
                    with _any_number(dict(zip(names, args, strict=False)) | kwargs):
                        return compiled(*_uniform(args), **_uniform(kwargs))
                except TorchDynamoException as error:
                    _logger.warning("Transformer blocks cannot be compiled", exc_info=error)
                    self.give_up(_reason(error))
            return forward(*args, **kwargs)

        return run


def _any_number(named: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """What is compiled now serves any value of arguments that are numbers, as the height and width of Sana's blocks.

    Dynamo would compile once for the first value, and for any other value as soon as there is one: for a user.
    """
    if not (numbers := [f"L['{name}']" for name, value in named.items() if type(value) is int]):
        return contextlib.nullcontext()
    config: Any = torch.compiler.config
    known = [config.dynamic_sources] if config.dynamic_sources else []  # of the operator, by torch's own variable
    context: contextlib.AbstractContextManager[Any] = config.patch(dynamic_sources=",".join([*known, *numbers]))
    return context


def _uniform(value: Any) -> Any:
    """Block arguments as the graphs expect them: numbers of rows and tokens that may change, and nothing else.

    Dynamo compares more than shapes: strides, also those of dimensions of size 1, and whether a tensor is a view. A
    FLUX single block gets two views of one tensor, but the first of them two tensors: that would be two graphs.
    """
    if type(value) is torch.Tensor:
        return _uniform_tensor(value)
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(map(_uniform, value))
    if isinstance(value, dict):
        return {name: _uniform(each) for name, each in value.items()}
    return value


def _uniform_tensor(tensor: torch.Tensor) -> torch.Tensor:
    if 0 not in tensor.stride():  # expanded tensors stay small
        # The copy is 1 % of a FLUX block's time, estimated from an L20's bandwidth.
        # `view` sets the strides of dimensions of size 1.
        tensor = tensor.contiguous().view(tensor.shape)
    tensor = tensor.data  # no view of another tensor, and what is marked is not the caller's
    last = tensor.ndim - (tensor.is_floating_point() or tensor.is_complex())  # channels; masks have none
    for dimension in range(last):
        if tensor.shape[dimension] > 1:  # 1 is always a graph of its own
            dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor


def _reason(error: TorchDynamoException) -> str:
    """In a line: of what the compiler raised, where Dynamo wraps that."""
    inner = getattr(error, "inner_exception", error)
    return f"{type(inner).__name__}: {next((line for line in str(inner).splitlines() if line.strip()), '')}"
