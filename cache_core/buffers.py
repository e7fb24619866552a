"""Blocks and a transformer that overwrite each other's tensors: detected, and copied where needed.

The policies keep inputs and outputs of blocks by reference, within a step and from one step to the next. That is safe
only if a block does not write into its input or into an earlier output, and the transformer does not write into a
block's output. Fused kernels, patches and CUDA graphs with static outputs do, some of them without raising the version
counter, and inference-mode tensors have no counter. So the first time a block runs on a shape it gets copies, which are
compared afterwards. Until it ran twice in a row what it returns is copied; the next times only versions and storages
are checked, which costs no memory traffic; and after those only the versions of its streams. The result also holds for
later sessions, as long as the block's code is the same (:mod:`cache_core.known_blocks`).

Each rank decides alone what it copies. Refusing depends on code, storages and which calls failed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from cache_core.blocks import Block, States
from cache_core.known_blocks import ENOUGH, TRUSTED, KnownBlock, known_block

__all__ = ["Buffers"]

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Buffers:
    """The buffers of one session.

    Attributes:
        handed: whether the running block's input is the output of the block before it, unchanged.
        overwritten: whether it was written into in between and no copy of it was kept.
    """

    def __init__(self) -> None:
        self.handed = self.overwritten = False
        self._known: dict[tuple[int, Any], KnownBlock] = {}
        self._running: KnownBlock | None = None
        self._unseen: KnownBlock | None = None  # ran, and nobody looked yet what the transformer does to its output
        self._outputs: dict[int, StorageWeakRef] = {}
        self._first = self._model_writes = False
        self._given: tuple[States, States, list[int | None], KnownBlock | None] | None = None

    def take(self, states: States) -> None:
        """A block is called with ``states``."""
        given, self._given = self._given, None
        self.handed = self.overwritten = self._first = False
        self._running = None
        if given is None:
            self._unseen = None
            return
        out, kept, versions, giver = given
        if out is kept:
            written = self.overwritten = versions != _versions(out)
        else:
            written = not all(map(_same_bits, out, kept))
            self._model_writes |= written
            if giver is not None:
                giver.overwritten |= written
        self._unseen = None
        self.handed = not written and all(a is b for a, b in zip(states, out, strict=True))

    def give(self, states: States) -> States:
        """What the transformer gets as a block's output; ``states`` may be kept."""
        kept, out = states, states
        if self._first or self._model_writes:
            out = States(*_copies(states))
        self._given = out, kept, _versions(out), self._running
        return out

    def let_go(self) -> None:
        """A call of the transformer begins or ends: no block will get the last output as its input."""
        self._given = self._unseen = None

    def fail(self) -> None:
        """The running call raised: what the transformer does to the last output was not seen."""
        if self._unseen is not None:
            self._unseen.forget()
        self.let_go()

    def run(self, block: Block, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block so that its streams and what it returns may be kept.

        Raises:
            RuntimeError: it wrote into an argument that is not a stream; or into a stream or an earlier output, which
                it did not do the first time.
        """
        names = [block.hidden_argument, *([] if block.encoder_result is None else [block.encoder_argument])]
        inputs = [block.argument(name, args, kwargs) for name in names]
        known = self._running = self._known_block(block, forward)
        key = (*(_kind(value) for value in inputs),)
        run, self._unseen = known.begin(key, self), known
        self._first = not known.met(key)
        self._model_writes |= known.overwritten
        if run > TRUSTED and not known.writes and not known.reuses:
            versions = _versions(inputs)
            output = forward(*args, **kwargs)
            known.ran(key, self, run)
            self._check_streams(block, inputs, versions)
            return output
        others = [value for value in _flat((*args, *kwargs.values())) if all(value is not stream for stream in inputs)]
        versions, others_versions = _versions(inputs), _versions(others)
        others_before = _copies(others) if self._first else others
        used = inputs
        if self._first or known.writes:
            used = _copies(inputs)
            args, kwargs = _replaced(block, dict(zip(names, used, strict=True)), args, kwargs)
        output = forward(*args, **kwargs)
        if others_versions != _versions(others) or (self._first and not all(map(_same_bits, others, others_before))):
            raise RuntimeError(
                f"block {block.name} writes into an argument other than its two streams, which it would not do in a "
                "step that skips it: it cannot be cached (`type: none` works)"
            )
        if self._first and not all(map(_same_bits, used, inputs)):
            known.writes = True
        elif used is inputs:
            self._check_streams(block, inputs, versions)
        owned = self._owned(block, known, output, used, run)
        known.ran(key, self, run)  # only now: one that raised was not checked to the end
        return owned

    def _check_streams(self, block: Block, inputs: list[Any], versions: list[int | None]) -> None:
        if versions != _versions(inputs):
            raise RuntimeError(
                f"block {block.name} wrote into its input in place, which it did not do when it first ran, but the "
                "cache compares with that input. Let it write into a tensor of its own"
            )

    def _known_block(self, block: Block, forward: Callable[..., Any]) -> KnownBlock:
        """What is known about a block; looked up once per session, and again if its forward was replaced."""
        code = getattr(forward, "checkpoints", forward)
        code = getattr(code, "__func__", code)
        place = block.index, code
        if place not in self._known:
            self._known[place] = known_block(block.module, code)
        return self._known[place]

    def _owned(self, block: Block, known: KnownBlock, output: Any, used: list[Any], run: int) -> Any:
        """The output, in memory that no later run writes into."""
        single = isinstance(output, torch.Tensor)
        outputs = [output] if single else list(output)
        storages = {_address(value): value.untyped_storage() for value in _tensors(outputs)}
        for address in map(_address, _tensors(used)):
            storages.pop(address, None)  # it returns its input, or a view of it
        # Still alive, so it is not memory that was freed in between.
        if any(address in self._outputs and not self._outputs[address].expired() for address in storages):
            if run > ENOUGH and not known.reuses:
                raise RuntimeError(
                    f"block {block.name} alternates between outputs in the same memory, but the cache compares with "
                    "what was in it. Let it return a tensor of its own (no CUDA graph, no static buffers)"
                )
            known.reuses = True
        self._outputs.update({address: StorageWeakRef(storage) for address, storage in storages.items()})
        if run > 1 and not known.reuses:
            return output
        copies = _copies(outputs)
        return copies[0] if single else tuple(copies)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _flat(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors in the arguments of a block."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            found += _flat(value.values())
        elif isinstance(value, list | tuple):
            found += _flat(value)
    return found


def _versions(values: Iterable[Any]) -> list[int | None]:
    """The tensors' version counters; None where they have none."""
    return [None if value.is_inference() else value._version for value in values if isinstance(value, torch.Tensor)]


def _kind(value: Any) -> Any:
    """What may make a block use different kernels: shape, dtype and mode."""
    if not isinstance(value, torch.Tensor):
        return None
    return value.shape, value.dtype, value.device, value.requires_grad, value.is_inference()


def _address(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _same_bits(left: Any, right: Any) -> bool:
    if left is right or not isinstance(left, torch.Tensor):
        return True
    with torch.no_grad():
        bits = _INTEGERS.get(left.element_size(), torch.uint8)  # byte by byte takes four times as long
        return torch.equal(*(value.detach().reshape(-1).contiguous().view(bits) for value in (left, right)))


def _copies(values: Sequence[Any]) -> list[Any]:
    """Copies with the same strides (or a compiled block would be recompiled) that share memory as the originals do."""
    wholes: dict[Any, torch.Tensor] = {}
    copies: list[Any] = []
    for value in values:
        if not isinstance(value, torch.Tensor):
            copies.append(value)
        elif type(value) is not torch.Tensor or value.requires_grad or _is_alone(value):
            copies.append(value.clone())
        else:
            shared = _address(value), value.dtype
            if shared not in wholes:
                size = value.untyped_storage().nbytes() // value.element_size()
                wholes[shared] = value.as_strided((size,), (1,), 0).clone()
            copies.append(wholes[shared].as_strided(value.shape, value.stride(), value.storage_offset()))
    return copies


def _is_alone(value: torch.Tensor) -> bool:
    """Whether to clone it by itself: it fills its memory (the clone is not a view either, as a compiled block expects)
    or is a small part of it."""
    return not value.nbytes < value.untyped_storage().nbytes() <= 2 * value.nbytes


def _replaced(
    block: Block, values: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the named ones replaced."""
    positional, named = list(args), dict(kwargs)
    for name, value in values.items():
        if name in named:
            named[name] = value
        elif (position := block.parameters.get(name)) is not None and position < len(positional):
            positional[position] = value
    return tuple(positional), named
