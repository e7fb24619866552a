"""Keeping blocks compiled while the hooks around them stay eager.

The hooks are under ``torch.compiler.disable``, because decision code must not be traced. A compiled caller would
therefore run the blocks eagerly without notice. Instead each block's original forward is called through its own
compiled function:

* a forward that is compiled already (``block.forward = torch.compile(block.forward)``) needs nothing;
* ``transformer.compile_repeated_blocks()`` leaves a compiled call around the hook: it is removed and its compile
  context (backend, mode and other settings) is put around the forward inside;
* ``torch.compile(transformer)`` and ``transformer.compile()`` wrap the whole: their context is re-entered per block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizeContext, OptimizedModule

__all__ = [
    "Compile",
    "compile_context",
    "is_compiled",
    "refuse_cuda_graphs",
    "take_compiled_call",
    "untraced",
    "unwrap_compiled",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Compiles a function with a user's own backend and mode.
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def untraced(function: _Function) -> _Function:
    """Decorator: the function is never traced, whatever calls it."""
    return cast(_Function, torch.compiler.disable(function))  # torch does not type it


def unwrap_compiled(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile(module)``, or the module itself."""
    return module._orig_mod if isinstance(module, OptimizedModule) else module


def compile_context(module: nn.Module) -> Compile | None:
    """The compile context of ``torch.compile(module)`` or ``module.compile()``; None if it is not compiled as a whole.

    Raises:
        ValueError: with ``fullgraph=True``, which allows no decision between blocks, or with CUDA graphs.
    """
    if isinstance(module, OptimizedModule):
        context = module.dynamo_ctx
    elif module._compiled_call_impl is not None:
        context = _context_in(module)
    else:
        return None
    if context.fullgraph:
        raise ValueError(
            f"{type(unwrap_compiled(module)).__name__} was compiled with fullgraph=True, but the cache decides between "
            "its blocks, from the values of tensors. Compile it with fullgraph=False, or block by block: "
            "transformer.compile_repeated_blocks(fullgraph=True)"
        )
    refuse_cuda_graphs(context.compiler_config)
    return context


def take_compiled_call(block: nn.Module) -> tuple[Callable[..., Any], Compile]:
    """Remove what ``block.compile()`` added, and return it with its compile context.

    Raises:
        ValueError: it was compiled with CUDA graphs.
    """
    context = _context_in(block)
    refuse_cuda_graphs(context.compiler_config)
    compiled, block._compiled_call_impl = block._compiled_call_impl, None
    assert compiled is not None  # or it would have no context
    return compiled, context


def is_compiled(forward: Callable[..., Any]) -> bool:
    """Whether a forward was returned by ``torch.compile``."""
    return hasattr(forward, "get_compiler_config")


def refuse_cuda_graphs(compiler_config: Any) -> None:
    """Raise ValueError for a compiler whose outputs are overwritten by its next run.

    The cache keeps one block's output while other blocks run.
    """
    if compiler_config is not None and compiler_config.get("triton.cudagraphs"):
        raise ValueError(
            'the cache does not work with CUDA graphs (mode="reduce-overhead" or "max-autotune"): a block\'s output is '
            'overwritten by the next run. Use mode="max-autotune-no-cudagraphs" or the default'
        )


def _context_in(module: nn.Module) -> OptimizeContext:
    """The compile context in the closure that ``module.compile()`` created."""
    for cell in getattr(module._compiled_call_impl, "__closure__", None) or ():
        if isinstance(cell.cell_contents, OptimizeContext):
            return cell.cell_contents
    raise RuntimeError(
        f"{type(module).__name__} was compiled with module.compile() in a way that the cache does not find in this "
        "torch version; compile each block's forward instead: block.forward = torch.compile(block.forward)"
    )
