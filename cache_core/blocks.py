"""The blocks of one transformer as the policies see them: a numbered list of calls on (hidden, encoder) states."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models import attention_processor
from torch import nn

from cache_core.block_specs import BLOCKS, SEAMS, STACKS, BlockSpec
from cache_core.known_blocks import interrupt
from cache_core.signatures import parameters_of
from cache_core.stacks import stacks, without_wrapper
from cache_core.sub_batch import argument_of_rows
from cache_core.supported import UNSUPPORTED

if TYPE_CHECKING:
    from cache_core.buffers import Buffers

_BY_PLACE = tuple(kind for name, kind in vars(attention_processor).items() if name.startswith("PAG"))

__all__ = ["Block", "BlockCall", "States", "UnsupportedModelError", "find_blocks"]


class UnsupportedModelError(ValueError):
    """The transformer has no blocks that the cache knows how to route."""


class States(NamedTuple):
    """Both streams between two blocks.

    Shapes: hidden [batch, image tokens, channels]; encoder [batch, text tokens, channels], None where the block does
    not return the text stream. Without the batch dimension it is one image's row.
    """

    hidden: torch.Tensor
    encoder: torch.Tensor | None

    def row(self, image: int) -> States:
        """One image's states: views, no copy."""
        return States(self.hidden[image], None if self.encoder is None else self.encoder[image])

    def owned_row(self, image: int) -> States:
        """One image's states, detached, that keep no other memory alive: views if they fill their storage, else copies.

        They do not fill it in a batch of several images, nor where one stream was replaced since (ControlNet) and the
        other is still a view of the joint buffer that a block returned for both.
        """
        hidden, encoder = self.row(image)
        row = States(hidden.detach(), None if encoder is None else encoder.detach())
        filled: dict[int, int] = {}
        for stream in row:
            if stream is not None:
                storage = stream.untyped_storage()
                filled[storage.data_ptr()] = filled.get(storage.data_ptr(), -storage.nbytes()) + stream.nbytes

        def owned(stream: torch.Tensor) -> torch.Tensor:
            return stream if filled[stream.untyped_storage().data_ptr()] == 0 else stream.clone()

        return States(owned(row.hidden), None if row.encoder is None else owned(row.encoder))

    def copied(self) -> States:
        """A deep copy."""
        return States(self.hidden.clone(), None if self.encoder is None else self.encoder.clone())

    def minus(self, other: States) -> States:
        """``self - other``, stream by stream."""
        if self.encoder is None or other.encoder is None:
            return States(self.hidden - other.hidden, None)
        return States(self.hidden - other.hidden, self.encoder - other.encoder)

    @staticmethod
    def stack(rows: list[States]) -> States:
        """A batch from its images' rows; for a batch of one a view."""
        encoders = [row.encoder for row in rows if row.encoder is not None]
        if len(rows) == 1:
            return States(rows[0].hidden[None], encoders[0][None] if encoders else None)
        return States(torch.stack([row.hidden for row in rows]), torch.stack(encoders) if encoders else None)


@dataclass(frozen=True)
class Block:
    """One transformer block: its number in execution order over all stacks, its module, and how it is called.

    ``seam`` marks a block whose input is not the output of the block before it: no residual may span both.
    """

    index: int
    name: str
    module: nn.Module
    spec: BlockSpec
    hidden_argument: str
    encoder_argument: str
    hidden_result: int
    encoder_result: int | None
    parameters: dict[str, int]
    seam: bool = False

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An argument by name, passed by position or by keyword; None if it was not given."""
        if name in kwargs:
            return kwargs[name]
        position = self.parameters.get(name)
        return args[position] if position is not None and position < len(args) else None


def find_blocks(transformer: nn.Module) -> list[Block]:
    """The blocks of ``transformer`` in execution order, numbered from 0 across its stacks.

    Raises:
        UnsupportedModelError: no stack of blocks was found, a block class has no entry in ``block_specs``, or the
            transformer is known not to work.
    """
    model = type(transformer).__name__
    if model in UNSUPPORTED:
        raise UnsupportedModelError(f"{model} cannot be cached: {UNSUPPORTED[model]}")
    named = [
        (f"{name}.{position}", module) for name, stack in stacks(transformer) for position, module in enumerate(stack)
    ]
    blocks = [_describe(index, name, without_wrapper(module)) for index, (name, module) in enumerate(named)]
    if len({block.module for block in blocks}) < len(blocks):
        raise UnsupportedModelError(f"{model} has one block in several places, but a block's memory is for one place")
    if not blocks:
        raise UnsupportedModelError(
            f"{model} has no stack of transformer blocks (looked for {sorted(STACKS)}); "
            "cache_core.supported_models() lists what works"
        )
    seam = SEAMS[model](transformer.config) if model in SEAMS else None
    return [
        replace(block, seam=block.index == seam or (block.encoder_result is None) != (before.encoder_result is None))
        for before, block in itertools.pairwise([blocks[0], *blocks])
    ]


def _describe(index: int, name: str, module: nn.Module) -> Block:
    cls = type(module)
    spec = BLOCKS.get(cls.__name__)
    if spec is None:
        raise UnsupportedModelError(
            f"block {name} is a {cls.__name__}, which cache_core.block_specs does not describe; "
            "cache_core.supported_models() lists what works"
        )
    metadata = spec.metadata or TransformerBlockRegistry.get(cls)
    return Block(
        index=index,
        name=name,
        module=module,
        spec=spec,
        hidden_argument=metadata.hidden_states_argument_name,
        encoder_argument=metadata.encoder_hidden_states_argument_name,
        hidden_result=metadata.return_hidden_states_index or 0,
        encoder_result=metadata.return_encoder_hidden_states_index,
        parameters={name: position for position, name in enumerate(parameters_of(cls.forward))},
    )


class BlockCall:
    """One call of one block: its input states, and how to run it for all images, some, or none."""

    __slots__ = ("_args", "_buffers", "_forward", "_given", "_kwargs", "block", "states")

    def __init__(self, block: Block, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.block, self._forward, self._args, self._kwargs = block, forward, args, kwargs
        encoder = None
        if block.encoder_result is not None:
            encoder = block.argument(block.encoder_argument, args, kwargs)
        self._given = States(block.argument(block.hidden_argument, args, kwargs), encoder)
        self.states = self._turned(self._given)
        self._buffers: Buffers | None = None

    def watch(self, buffers: Buffers) -> None:
        """Track writes to the memory of the block's streams, so that they can be kept."""
        self._buffers = buffers
        buffers.take(self._given)

    @property
    def handed(self) -> bool:
        """Whether the streams are the previous block's output, unchanged."""
        return self._buffers is not None and self._buffers.handed

    @property
    def overwritten(self) -> bool:
        """Whether they are the previous block's output, but written into since."""
        return self._buffers is not None and self._buffers.overwritten

    @property
    def refused(self) -> str | None:
        """What to do instead of passing the block a key-value cache that is in use; None if none was passed."""
        for name, instead in self.block.spec.without.items():
            cache = self.block.argument(name, self._args, self._kwargs)
            if cache is not None and getattr(cache, "mode", "") is not None:  # GLM-Image's has mode None when unused
                return f"{name}: {instead}"
        return None

    @property
    def batch(self) -> int:
        return self.states.hidden.shape[0]

    def compute(self) -> States:
        """Run the block for the whole batch, with the caller's arguments."""
        return self._run(self._args, self._kwargs)

    def compute_rows(self, rows: list[int]) -> States:
        """Run the block only for the images ``rows``; the result has ``len(rows)`` images."""
        if _knows_rows_by_place(self.block.module):
            whole = self.compute()
            return States.stack([whole.row(k) for k in rows])
        names = tuple(self.block.parameters)
        args = [self._take(name, value, rows) for name, value in zip(names, self._args, strict=False)]
        kwargs = {name: self._take(name, value, rows) for name, value in self._kwargs.items()}
        return self._run((*args, *self._args[len(names) :]), kwargs)

    def complete(self, known: dict[int, States]) -> States:
        """The block's output for the whole batch: ``known`` rows as they are, the others computed."""
        if not known:
            return self.compute()
        if rows := [k for k in range(self.batch) if k not in known]:
            part = self.compute_rows(rows)
            known = known | {k: part.row(i) for i, k in enumerate(rows)}
        return States.stack([known[k] for k in range(self.batch)])

    def pack(self, states: States) -> Any:
        """States in the block's own result format."""
        states = self._turned(states)
        if self._buffers is not None:
            states = self._buffers.give(states)
        if self.block.encoder_result is None:
            return states.hidden
        result: list[Any] = [None, None]
        result[self.block.hidden_result] = states.hidden
        result[self.block.encoder_result] = states.encoder
        return tuple(result)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> States:
        if self._buffers is None:
            interrupt(self.block.module)
            return self._unpack(self._forward(*args, **kwargs))
        return self._unpack(self._buffers.run(self.block, self._forward, args, kwargs))

    def _take(self, name: str, value: Any, rows: list[int]) -> Any:
        stream = name in (self.block.hidden_argument, self.block.encoder_argument)
        return argument_of_rows(self.block.spec, name, value, rows, self.batch, stream)

    def _unpack(self, output: Any) -> States:
        if self.block.encoder_result is None:
            hidden = output[self.block.hidden_result] if isinstance(output, tuple) else output
            return self._turned(States(hidden, None))
        return self._turned(States(output[self.block.hidden_result], output[self.block.encoder_result]))

    def _turned(self, states: States) -> States:
        """Convert from the block's order of dimensions to ours, or back: views, or the same object if they agree."""
        if self.block.hidden_argument not in self.block.spec.tokens_first:
            return states
        return States(states.hidden.transpose(0, 1), states.encoder)


def _knows_rows_by_place(block: nn.Module) -> bool:
    """Whether attention is perturbed for a third or half of the batch (PAG): a part of the batch has different thirds.

    Checked at every call, because pipelines replace the processors while they run.
    """
    return any(isinstance(getattr(module, "processor", None), _BY_PLACE) for module in block.modules())
