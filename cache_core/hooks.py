"""Attaching the cache to a diffusers transformer, through diffusers' own ``HookRegistry`` and ``ModelHook``.

One hook per block and one on the root. A step is one call of the root; its branch is the name of the open
``cache_context``. Names of parameters and modules do not change, so LoRA and ControlNet still work. Calls of no open
session (:mod:`cache_core.ownership`) pass through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import StateManager
from torch import nn

from cache_core.blocks import Block, BlockCall, find_blocks
from cache_core.calls import call_inputs
from cache_core.compiled import Compile, is_compiled, refuse_cuda_graphs, take_compiled_call
from cache_core.ownership import call_of, innermost, running
from cache_core.session import Session

__all__ = ["Attachment", "attachment_of"]

_BLOCK_HOOK = "cache_core_block"
_ROOT_HOOK = "cache_core_root"
_logger = logging.getLogger(__name__)


class _BranchName(StateManager):
    """Only listens: keeps the name of the cache context that the pipeline opened, for each thread its own."""

    def __init__(self) -> None:
        super().__init__(state_cls=None)

    @property
    def name(self) -> str:
        return _NAMES.get().get(self, "default")

    def set_context(self, context: Any) -> None:
        names = {manager: name for manager, name in _NAMES.get().items() if manager is not self}
        _NAMES.set(names if context is None else names | {self: context.name})


_NAMES: ContextVar[dict[_BranchName, str]] = ContextVar("cache_core_names", default={})  # noqa: B039 (never changed)


class _RootHook(ModelHook):
    _is_stateful = True

    def __init__(self, attachment: Attachment) -> None:
        super().__init__()
        self.attachment = attachment
        self.branch = _BranchName()
        self.compiling = False

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if module is not self.attachment.transformer:
            raise RuntimeError(
                "this transformer is a copy of one that the cache is attached to, and would run the original's blocks; "
                "call remove_cache() before copying, and attach to the copy again"
            )
        # Unlike new_forward, this is traced: True exactly when the caller is compiled.
        self.compiling = torch.compiler.is_compiling()
        return args, kwargs

    @torch.compiler.disable
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.attachment.adopt_compiled_blocks()
        if self.compiling:
            self.attachment.warn_if_eager()
        with call_of(module) as session:
            if session is None:
                return self.fn_ref.original_forward(*args, **kwargs)
            session.begin_step(self.branch.name, call_inputs(module, args, kwargs))
            output = self.fn_ref.original_forward(*args, **kwargs)
            session.end_step()
            return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        # Pipelines call this at the end of every call. The session belongs to whoever opened it, so it stays.
        return module


class _BlockHook(ModelHook):
    def __init__(self, attachment: Attachment, block: Block) -> None:
        super().__init__()
        self.attachment, self.block = attachment, block
        self.compiled: Callable[..., Any] | None = None

    @torch.compiler.disable
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = self.compiled or self.fn_ref.original_forward
        session = running(self.attachment.transformer)
        if session is None:
            return forward(*args, **kwargs)
        return session.run(BlockCall(self.block, forward, args, kwargs))

    def compile(self, context: Compile) -> Callable[..., Any]:
        """The block's own forward, compiled in a user's compile context."""
        forward = self.fn_ref.original_forward
        if hasattr(forward, "__code__"):
            return context(forward)
        # Another hook's wrapper is a functools.partial, which Dynamo takes only from inside a function.
        return context(lambda *args, **kwargs: forward(*args, **kwargs))


class Attachment:
    """The hooks on one transformer.

    Attributes:
        sessions: how many are open; the hooks stay on that long.
        kept: the hooks stay on between sessions.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.blocks = find_blocks(transformer)
        self.sessions, self.kept = 0, False
        self._context: Compile | None = None
        self._taken: dict[int, Callable[..., Any]] = {}
        self._warned = False
        self._wrappers: dict[nn.Module, Any] = {}
        self._hooks = [_BlockHook(self, block) for block in self.blocks]
        for block, hook in zip(self.blocks, self._hooks, strict=True):
            self._register(block.module, hook, _BLOCK_HOOK)
        self._register(transformer, _RootHook(self), _ROOT_HOOK)
        HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()

    @property
    def session(self) -> Session | None:
        """The session opened last in this context."""
        return innermost(self.transformer)

    def use_compile_context(self, context: Compile | None) -> None:
        """Compile each block's forward with the context of a compiled transformer; None = as the blocks are."""
        if context is self._context:
            return
        self._context = context
        for hook in self._hooks:
            hook.compiled = None if context is None else hook.compile(context)

    def adopt_compiled_blocks(self) -> None:
        """Move what ``compile_repeated_blocks()`` did from around the hooks to inside them."""
        for hook in self._hooks:
            if hook.block.module._compiled_call_impl is not None:
                self._taken[hook.block.index], context = take_compiled_call(hook.block.module)
                hook.compiled = hook.compile(context)
            elif is_compiled(hook.fn_ref.original_forward):
                refuse_cuda_graphs(hook.fn_ref.original_forward.get_compiler_config())

    def warn_if_eager(self) -> None:
        """Say once that a compiled caller runs these blocks eagerly, because its compile context is not known here."""
        if self._warned or all(hook.compiled or is_compiled(hook.fn_ref.original_forward) for hook in self._hooks):
            return
        self._warned = True
        name = type(self.transformer).__name__
        _logger.warning(
            "%s is called through torch.compile, but its blocks run eagerly: the cache was given the module inside. "
            "Give cache_session what torch.compile returned, or use transformer.compile_repeated_blocks()",
            name,
        )

    def check_detachable(self) -> None:
        """Raise RuntimeError if somebody wrapped a forward after the cache did (ParaAttention, offloading): taking our
        wrapper from under theirs would undo it silently."""
        for module, wrapper in self._wrappers.items():
            own = _BLOCK_HOOK if module is not self.transformer else _ROOT_HOOK
            outermost = next(reversed(module._diffusers_hook.hooks), None) == own
            if outermost and module.forward is not wrapper:
                raise RuntimeError(
                    f"cannot detach the cache from {type(module).__name__}: its forward was wrapped by "
                    f"{getattr(module.forward, '__qualname__', module.forward)!r} after the cache was attached "
                    "(parallelize_transformer, offload hooks). Undo that first, or attach the cache last"
                )

    def detach(self) -> None:
        """Take the hooks off and leave the modules as they were.

        Raises:
            RuntimeError: as :meth:`check_detachable` says; nothing was taken off then.
        """
        self.check_detachable()
        for block in self.blocks:
            self._unregister(block.module, _BLOCK_HOOK)
            if block.index in self._taken:
                block.module._compiled_call_impl = self._taken[block.index]
        self._unregister(self.transformer, _ROOT_HOOK)
        if hasattr(self.transformer, "_diffusers_hook"):
            self.transformer._diffusers_hook.invalidate_child_registries_cache()

    def _register(self, module: nn.Module, hook: ModelHook, name: str) -> None:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
        self._wrappers[module] = module.forward

    @staticmethod
    def _unregister(module: nn.Module, name: str) -> None:
        registry = module._diffusers_hook
        registry.remove_hook(name, recurse=False)
        if not registry.hooks:
            del module._diffusers_hook
            # The registry puts a bound method back into the instance; the class already has it.
            forward = module.__dict__.get("forward")
            if getattr(forward, "__func__", None) is type(module).forward:
                del module.__dict__["forward"]


def attachment_of(transformer: nn.Module) -> Attachment | None:
    """The attachment on a transformer, if there is one."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook = registry.get_hook(_ROOT_HOOK) if registry is not None else None
    return hook.attachment if isinstance(hook, _RootHook) else None


def original_forwards(module: nn.Module) -> list[Any]:
    """The forwards around and inside the hooks of a module, outermost first."""
    registry = getattr(module, "_diffusers_hook", None)
    inner = [ref.original_forward for ref in reversed(registry._fn_refs)] if registry is not None else []
    return [forward for forward in (module.forward, *inner) if forward is not None]
