"""Attaching the cache to a diffusers transformer, through diffusers' own ``HookRegistry`` and ``ModelHook``.

One hook per block and one on the root, each inside whatever else wraps the module (:mod:`cache_core.chain`). A step is
one call of the root; its branch is the name of the open ``cache_context``. Names of parameters and modules do not
change, so LoRA and ControlNet still work. Calls that belong to no open session (:mod:`cache_core.ownership`) pass
through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast

import torch
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from cache_core.blocks import Block, BlockCall, find_blocks
from cache_core.calls import call_inputs
from cache_core.chain import CacheHook
from cache_core.checkpointing import Checkpointing, refuse_backward
from cache_core.compiled import Compile, is_compiled, refuse_cuda_graphs, take_compiled_call, untraced
from cache_core.given import Given, given_to
from cache_core.known_blocks import interrupt
from cache_core.ownership import call_of, innermost, running
from cache_core.placement import Placement
from cache_core.session import Session
from cache_core.stacks import block_modules, without_wrapper
from cache_core.walking import registries

__all__ = ["Attachment", "attachment_of"]

_BLOCK_HOOK = "cache_core_block"
_ROOT_HOOK = "cache_core_root"
_logger = logging.getLogger(__name__)


class _BranchName(StateManager):
    """Only listens: keeps, for each thread, the name of the cache context that the pipeline opened."""

    def __init__(self) -> None:
        super().__init__(cast(BaseState, BaseState))  # diffusers' annotation says an instance, but it takes the class

    @property
    def name(self) -> str:
        return _NAMES.get().get(self, "default")

    def set_context(self, context: Any) -> None:
        names = {manager: name for manager, name in _NAMES.get().items() if manager is not self}
        _NAMES.set(names if context is None else names | {self: context.name})


_NAMES: ContextVar[dict[_BranchName, str]] = ContextVar("cache_core_names", default={})  # noqa: B039 (never changed)


class _RootHook(CacheHook):
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
                "call remove_cache() before copying, and attach the cache to the copy"
            )
        # Unlike new_forward, this is traced, so it is True exactly when the caller is compiled.
        self.compiling = torch.compiler.is_compiling()
        return args, kwargs

    @untraced
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.attachment.settle_blocks()
        self.attachment.adopt_compiled_blocks()
        if self.compiling:
            self.attachment.warn_if_eager()
        with call_of(module) as session:
            if session is None:
                return self.fn_ref.original_forward(*args, **kwargs)
            refuse_backward(module)
            self.attachment.checkpointing.adopt()
            try:
                session.begin_step(self.branch.name, call_inputs(module, args, kwargs).within(given_to(module)))
                output = self.fn_ref.original_forward(*args, **kwargs)
                session.end_step()
            except BaseException:
                session.fail_step()
                raise
            return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        # Pipelines call this at the end of every call. The session stays: it belongs to the code that opened it.
        return module


class _BlockHook(CacheHook):
    def __init__(self, attachment: Attachment, block: Block) -> None:
        super().__init__()
        self.attachment, self.block = attachment, block
        self.compiled: Callable[..., Any] | None = None
        self._context: Compile | None = None

    @untraced
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = self.compiled or self.fn_ref.original_forward
        session = running(self.attachment.transformer)
        if session is None:
            interrupt(self.block.module)
            return forward(*args, **kwargs)
        forward = self.attachment.checkpointing.inside(forward)
        return session.run(BlockCall(self.block, forward, args, kwargs))

    def compile(self, context: Compile | None) -> None:
        """Run the block's own forward compiled in a user's compile context; None = unchanged."""
        self._context, forward = context, self.fn_ref.original_forward
        if context is None:
            self.compiled = None
        elif hasattr(forward, "__code__"):
            self.compiled = context(forward)
        else:  # another hook's wrapper is a functools.partial, which Dynamo accepts only inside a function
            self.compiled = context(lambda *args, **kwargs: forward(*args, **kwargs))

    def compile_again(self) -> None:
        """Compile again, because the block's own forward was replaced."""
        self.compile(self._context)


class Attachment:
    """The hooks on one transformer.

    Attributes:
        sessions: number of open sessions; the hooks stay while there is one.
        kept: whether the hooks stay between sessions.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.blocks = find_blocks(transformer)
        self.sessions, self.kept = 0, False
        self._context: Compile | None = None
        self._taken: dict[int, Callable[..., Any]] = {}
        self._warned = False
        self.checkpointing = Checkpointing(
            transformer,
            lambda module: (
                (self.session is not None or running(transformer) is not None)
                and any(without_wrapper(module) is own.module for own in self.blocks)
            ),
        )
        self._hooks = [_BlockHook(self, block) for block in self.blocks]
        self._places = [Placement(hook.block.module, hook, _BLOCK_HOOK) for hook in self._hooks]
        self._root = Placement(transformer, _RootHook(self), _ROOT_HOOK)
        self._given = Given(transformer)
        self._tell_registries()

    def settle(self) -> None:
        """Route every call through the hooks again, whatever was done to the transformer since.

        Raises:
            UnsupportedModelError: a block was replaced by one of an unknown class.
        """
        self.settle_blocks()
        self._root.settle()

    def settle_blocks(self) -> None:
        """The same for the blocks only; also works inside a call of the transformer."""
        if [block.module for block in self.blocks] != list(block_modules(self.transformer)):
            self._take_new_blocks()
        for place, hook in zip(self._places, self._hooks, strict=True):
            if place.settle():
                hook.compile_again()

    def _take_new_blocks(self) -> None:
        """Quantizers and adapters replace blocks: hooks are removed from old blocks and added to new ones."""
        blocks = find_blocks(self.transformer)
        for place in self._places:
            if all(block.module is not place.module for block in blocks):
                place.remove()
        old = {place.module: (place, hook) for place, hook in zip(self._places, self._hooks, strict=True)}
        self.blocks, self._places, self._hooks, taken = blocks, [], [], self._taken
        self._taken = {}
        for block in blocks:
            if block.module in old:
                place, hook = old[block.module]
                if hook.block.index in taken:
                    self._taken[block.index] = taken[hook.block.index]
            else:
                hook = _BlockHook(self, block)
                place = Placement(block.module, hook, _BLOCK_HOOK)
                hook.compile(self._context)
            hook.block = block
            self._places.append(place)
            self._hooks.append(hook)
        self._tell_registries()

    def _tell_registries(self) -> None:
        """Make diffusers look for modules with hooks again: a faster ``invalidate_child_registries_cache``."""
        for _, registry in registries(self.transformer):
            registry._child_registries_cache = None

    @property
    def session(self) -> Session | None:
        """The most recently opened session in this context."""
        return innermost(self.transformer)

    def use_compile_context(self, context: Compile | None) -> None:
        """Compile each block's forward with the context of a compiled transformer; None = as the blocks are."""
        if context is self._context:
            return
        self._context = context
        for hook in self._hooks:
            hook.compile(context)

    def adopt_compiled_blocks(self) -> None:
        """Move what ``compile_repeated_blocks()`` put around the hooks inside them."""
        for hook in self._hooks:
            if hook.block.module._compiled_call_impl is not None:
                self._taken[hook.block.index], context = take_compiled_call(hook.block.module)
                hook.compile(context)
            elif is_compiled(hook.fn_ref.original_forward):
                refuse_cuda_graphs(hook.fn_ref.original_forward.get_compiler_config())

    def warn_if_eager(self) -> None:
        """Warn once that a compiled caller runs these blocks eagerly, because its compile context is not known here."""
        if self._warned or all(hook.compiled or is_compiled(hook.fn_ref.original_forward) for hook in self._hooks):
            return
        self._warned = True
        name = type(self.transformer).__name__
        _logger.warning(
            "%s is called through torch.compile, but its blocks run eagerly: the cache was given the module inside. "
            "Pass cache_session what torch.compile returned, or use transformer.compile_repeated_blocks()",
            name,
        )

    def check_detachable(self) -> None:
        """Raise RuntimeError if other code wrapped a forward after the cache did (ParaAttention, a patch): removing the
        cache's wrapper under theirs would silently undo it."""
        for place in (*self._places, self._root):
            place.check_removable()

    def detach(self) -> None:
        """Remove the hooks and leave the modules as they were.

        Raises:
            RuntimeError: see :meth:`check_detachable`; then nothing was removed.
        """
        self.check_detachable()
        for block, place in zip(self.blocks, self._places, strict=True):
            place.remove()
            if block.index in self._taken:
                block.module._compiled_call_impl = self._taken[block.index]
        self._root.remove()
        self._given.remove()
        self.checkpointing.give_back()
        self._tell_registries()


def attachment_of(transformer: nn.Module) -> Attachment | None:
    """The attachment on a transformer, if there is one."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook = registry.get_hook(_ROOT_HOOK) if registry is not None else None
    return hook.attachment if isinstance(hook, _RootHook) else None
