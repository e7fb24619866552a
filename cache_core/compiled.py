"""Keeping blocks compiled while the hooks around them stay eager.

The hooks are ``torch.compiler.disable``: decision code must not be traced. So a compiled caller would run the blocks
eagerly, silently. Instead each block's original forward is called through a compiled function of its own:

* a forward that is compiled already (``block.forward = torch.compile(block.forward)``) needs nothing;
* ``transformer.compile_repeated_blocks()`` leaves a compiled call around the hook: it is taken off and its compile
  context (backend, mode and all) is put around the forward inside;
* ``torch.compile(transformer)`` wraps the whole: its compile context is re-entered per block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch._dynamo.eval_frame import OptimizeContext, OptimizedModule

__all__ = ["Compile", "compile_context", "take_compiled_call", "unwrap_compiled"]

#: Compiles a function with a user's own backend and mode.
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def unwrap_compiled(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile(module)``, or the module itself."""
    return module._orig_mod if isinstance(module, OptimizedModule) else module


def compile_context(module: nn.Module) -> Compile | None:
    """The compile context of ``torch.compile(module)``; None if the module is not compiled as a whole."""
    return module.dynamo_ctx if isinstance(module, OptimizedModule) else None


def take_compiled_call(module: nn.Module) -> tuple[Callable[..., Any] | None, Compile | None]:
    """Take off what ``module.compile()`` left and return it with its compile context; ``(None, None)`` if nothing.

    Raises:
        RuntimeError: the module is compiled in a way whose context cannot be found (``fullgraph=True`` cannot work
            with hooks either, for decisions need the values of tensors).
    """
    compiled = getattr(module, "_compiled_call_impl", None)
    if compiled is None:
        return None, None
    for cell in getattr(compiled, "__closure__", None) or ():
        if isinstance(cell.cell_contents, OptimizeContext):
            module._compiled_call_impl = None
            return compiled, cell.cell_contents
    raise RuntimeError(
        f"{type(module).__name__} was compiled with module.compile() in a way this torch version hides from the cache; "
        "compile each block's forward instead: block.forward = torch.compile(block.forward)"
    )
