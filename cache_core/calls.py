"""Distinguishes the calls of one denoising step if the pipeline does not name them.

True CFG calls the transformer twice a step, for the prompt and for the negative prompt. Some pipelines name the two
with ``cache_context``, many do not (FLUX Kontext and ControlNet, HunyuanVideo I2V, Kandinsky 5, Wan video-to-video,
...). Treated as one sequence, one prompt's residuals would be compared with and reused for the other's, and guidance
would be lost silently. The timestep does not change between the calls of a step, but the conditioning (text, masks,
labels, image embeddings, guidance, the shape of the latents) does: each call at the same timestep with conditioning not
yet seen there is a branch of its own, ``default``, ``default#2``, ``default#3``, ... From step to step a call is
recognised by its conditioning, not by its position.

Conditioning that was already seen at this timestep begins a new step: second-order schedulers (Heun) evaluate two steps
at one timestep, and in half precision neighbouring timesteps may round to the same number. A prompt guided by itself
therefore stays one branch, which makes no difference to its image.

All ranks must distinguish calls in the same way, although context parallelism gives each of them only a part of the
text: the arguments of the whole transformer call count as well (:mod:`cache_core.given`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from cache_core.signatures import parameters_of

__all__ = ["CallInputs", "FailedCall", "StepCalls", "call_inputs"]

#: The names of these arguments in all supported transformers.
_TIMESTEP = ("timestep", "t", "timesteps")
_LATENTS = ("hidden_states", "x")
#: What may change between the calls of a step. ControlNet's residuals are left out: they change at every step.
_CONDITIONING = (
    "encoder_hidden_states", "encoder_hidden_states_2", "encoder_hidden_states_t5", "encoder_hidden_states_llama3",
    "audio_encoder_hidden_states", "pooled_projections", "pooled_embeds", "cap_feats", "text_bth", "text_lens",
    "input_ids", "class_labels", "encoder_hidden_states_image", "image_embeds", "image_cond_hidden_states",
    "siglip_feats", "control_hidden_states", "prior_token_id", "prior_token_drop", "encoder_attention_mask",
    "encoder_attention_mask_2", "encoder_hidden_states_mask", "encoder_mask", "attention_mask", "guidance",
    "added_cond_kwargs", "joint_attention_kwargs", "attention_kwargs",
    # LTX-2 is also guided by its own text in other ways.
    "isolate_modalities", "spatio_temporal_guidance_blocks", "perturbation_mask",
)  # fmt: skip


class CallInputs(NamedTuple):
    """What distinguishes a call of the transformer, and its rows.

    Attributes:
        timestep: a tensor, of one value or one per image (or token), or a number; None if the call has none.
        latents: a tensor, or a list with an entry for each row.
        conditioning: tensors, lists or dicts of them, or values, as the pipeline passed them.
    """

    timestep: Any
    latents: Any
    conditioning: tuple[Any, ...]

    def within(self, given: CallInputs | None) -> CallInputs:
        """These inputs of the innermost forward combined with ``given``, those of the whole call.

        A different call differs in at least one: wrappers between the two may split what was given, so that only a part
        of the difference arrives, or call the forward several times with other inputs.
        """
        same_time = given is None or given.timestep is self.timestep
        if given is None or (same_time and _is_identical(given.conditioning, self.conditioning)):
            return self
        rows = [len(own) if hasattr(own, "__len__") else None for own in (given.latents, self.latents)]
        return CallInputs(
            self.timestep if same_time else (given.timestep, self.timestep),
            given.latents if rows[0] == rows[1] else self.latents,  # a batch may also be split
            (given.conditioning, self.conditioning),
        )


def call_inputs(transformer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> CallInputs:
    """Timestep, latents and conditioning of a call of ``transformer``, by position or by name."""
    given = dict(zip(parameters_of(type(transformer).forward), args, strict=False)) | kwargs
    timestep, latents = (
        next((given[name] for name in names if name in given), None) for names in (_TIMESTEP, _LATENTS)
    )
    # Skip-layer guidance calls with the prompt's rows a second time.
    return CallInputs(timestep, latents, (_shapes(latents), *(given.get(name) for name in _CONDITIONING)))


def _shapes(latents: Any) -> list[Any]:
    """The shape of each entry of a list, or of the whole tensor."""
    return [getattr(row, "shape", None) for row in (latents if isinstance(latents, list) else [latents])]


class FailedCall:
    """A call that raised, kept to recognise its repetition."""

    def __init__(self, inputs: CallInputs) -> None:
        self._inputs, self._versions = inputs, _versions(inputs)

    def is_again(self, inputs: CallInputs) -> bool:
        """Whether a call has the same inputs, and none of them was written to since."""
        return self._versions == _versions(self._inputs) and _equal(tuple(self._inputs), tuple(inputs))


class StepCalls:
    """The calls of the running step under one cache context.

    Identity is checked before values, and conditioning before the timestep: most pipelines pass the same tensors at
    every step, so that there is no wait for the GPU.
    """

    def __init__(self) -> None:
        self._timestep: Any = None
        self._seen: dict[int, tuple[Any, ...]] = {}  # by branch, in the order of the running step's calls
        self._known: dict[int, tuple[Any, ...]] = {}  # what each branch was last called with
        self._shapes: dict[int, list[Any]] = {}  # the latents' of each branch
        self._steady: set[int] = set()  # branches that were called with the same again
        self._before: tuple[Any, ...] | None = None  # the call that is running

    def begin(self, inputs: CallInputs) -> int:
        """The branch of this call, from 1."""
        self._before = self._timestep, dict(self._seen), dict(self._known), dict(self._shapes), set(self._steady)
        seen = next((branch for branch, own in self._seen.items() if _is_seen(own, inputs.conditioning)), None)
        timestep = _copy(inputs.timestep)
        if seen is not None or timestep is None or not _same_time(self._timestep, timestep):
            self._timestep, self._seen = timestep, {}
        shapes = _shapes(inputs.latents)
        branch = self._branch_of(inputs.conditioning, shapes)
        self._shapes[branch] = shapes
        self._seen[branch] = self._known[branch] = self._reference(inputs.conditioning)
        return branch

    def _branch_of(self, conditioning: tuple[Any, ...], shapes: list[Any]) -> int:
        """The branch that was called with the same conditioning before, whatever its position in the step: guidance may
        begin and end midway, and calls may change their order. New conditioning gets the branch of its position, if
        that is free."""
        free = {branch: own for branch, own in self._known.items() if branch not in self._seen}
        for same in (_is_same, _is_seen):
            if found := next((branch for branch, own in free.items() if same(own, conditioning)), None):
                self._steady.add(found)
                return found
        place = len(self._seen) + 1
        # A branch that always had the same text does not get a new one: this is a call that was not made before. But
        # a different batch or image size is not a call of this image, and the branch refuses it.
        taken = place in self._seen or (place in self._steady and self._shapes[place] == shapes)
        return max(self._known) + 1 if taken else place

    def end(self) -> None:
        """The call returned."""
        self._before = None

    def undo(self) -> None:
        """The call raised: it does not count."""
        if self._before is not None:
            self._timestep, self._seen, self._known, self._shapes, self._steady = self._before
        self._before = None

    def _reference(self, conditioning: tuple[Any, ...]) -> tuple[Any, ...]:
        """The existing record of the same objects, else a new record to recognise them by."""
        return tuple(
            next((seen[i] for seen in self._known.values() if i < len(seen) and _is_same(seen[i], own)), None)
            or _references(own)
            for i, own in enumerate(conditioning)
        )


def _copy(timestep: Any) -> Any:
    """A copy that stays when the pipeline writes the next step's time into the same tensor; no wait for a GPU."""
    if isinstance(timestep, tuple):  # as given to the transformer, and as received by its forward
        return tuple(map(_copy, timestep))
    if not isinstance(timestep, torch.Tensor):
        return timestep
    return timestep.flatten().tolist() if timestep.device.type == "cpu" else timestep.flatten().clone()


def _same_time(left: Any, right: Any) -> bool:
    """Whether two timesteps are equal; with fewer rows a call may still be of the same step."""
    if isinstance(left, tuple) and isinstance(right, tuple) and len(left) == len(right):
        return all(map(_same_time, left, right))
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor) and left.shape != right.shape:
        left, right = left.unique(), right.unique()
    elif isinstance(left, list) and isinstance(right, list) and len(left) != len(right):
        left, right = sorted(set(left)), sorted(set(right))
    return _equal(left, right)


class _SeenTensor:
    """A tensor that was seen, without keeping it alive: its values are recognised by a weighted sum of them."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._reference, self._mark = weakref.ref(tensor), _mark(tensor)

    def is_same(self, value: Any) -> bool:
        """Whether it is this very tensor, and still alive."""
        return value is not None and self._reference() is value

    def is_seen(self, value: Any) -> bool:
        if not isinstance(value, torch.Tensor):  # a call without text is a different one, also when this tensor is gone
            return False
        alive = self._reference()
        return self._mark == _mark(value) if alive is None else _equal(alive, value)


def _mark(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Shape, device, and a sum over the values: a number on a CPU, on a GPU a scalar tensor that is not waited for."""
    values = tensor.detach().double().flatten()
    weighted = values @ torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    return tensor.shape, tensor.device, weighted.item() if tensor.device.type == "cpu" else weighted


def _references(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _references(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_references, value))
    return _SeenTensor(value) if isinstance(value, torch.Tensor) else value


def _is_same(seen: Any, value: Any) -> bool:
    """Whether all tensors are the same objects, and everything else is equal; no wait for a GPU."""
    if isinstance(seen, dict):
        return isinstance(value, dict) and _is_same(tuple(seen.items()), tuple(value.items()))
    if isinstance(seen, tuple):
        return isinstance(value, list | tuple) and len(seen) == len(value) and all(map(_is_same, seen, value))
    return seen.is_same(value) if isinstance(seen, _SeenTensor) else _equal(seen, value)


def _is_seen(seen: Any, value: Any) -> bool:
    if isinstance(seen, dict):
        return (
            isinstance(value, dict)
            and seen.keys() == value.keys()
            and all(_is_seen(own, value[name]) for name, own in seen.items())
        )
    if isinstance(seen, tuple):
        return isinstance(value, list | tuple) and len(seen) == len(value) and all(map(_is_seen, seen, value))
    return seen.is_seen(value) if isinstance(seen, _SeenTensor) else _equal(seen, value)


def _versions(value: Any) -> list[int]:
    """The version counters of all tensors; in inference mode they have none."""
    if isinstance(value, torch.Tensor):
        return [] if value.is_inference() else [value._version]
    if isinstance(value, dict):
        return _versions(list(value.values()))
    return [version for own in value for version in _versions(own)] if isinstance(value, list | tuple) else []


def _is_identical(left: Any, right: Any) -> bool:
    """Whether both hold the same tensor objects; values are not compared."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_is_identical, left, right))
    return left is right or (isinstance(left, int | float | str) and left == right)


def _equal(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and left.device == right.device and torch.equal(left, right)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return isinstance(left, int | float | str) and left == right
