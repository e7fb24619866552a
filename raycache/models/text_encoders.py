"""Text encoders separate from their pipeline: loaded on one rank only, on its device or on the CPU.

Where they are left out a stand-in tells their class, config and type, which pipelines ask for, and cannot be called.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["EncoderElsewhere", "TextEncoders", "TextEncodersFault", "load_text_encoders", "text_encoders_named"]


class TextEncodersFault(ValueError):
    """``model.text_encoders`` asks for what this pipeline cannot do."""


class EncoderElsewhere(AttributeError):
    """A pipeline used a text encoder besides in its ``encode_prompt``."""


@dataclass(frozen=True)
class TextEncoders:
    """The encoders of one pipeline.

    Attributes:
        stand_ins: what pipelines have in their place.
        modules: the encoders; empty on ranks that encode nothing.
        device: of ``modules``.
    """

    stand_ins: Mapping[str, Any]
    modules: Mapping[str, torch.nn.Module]
    device: torch.device

    def encode(self, pipe: Any, *args: Any, **kwargs: Any) -> Any:
        """``pipe.encode_prompt`` with the encoders, on their device."""
        own = copy.copy(pipe)
        own.__dict__.pop("encode_prompt", None)
        for name, module in self.modules.items():
            object.__setattr__(own, name, module)  # the pipeline's own way would write the config that copies share
        if self.device != pipe.device:
            pipeline: Any = type(pipe)  # to the checker a class has the hash of its instances
            own.__class__ = _on(pipeline, self.device)
            bound = inspect.signature(own.encode_prompt).bind(*args, **kwargs)
            if "device" in inspect.signature(own.encode_prompt).parameters:
                bound.arguments["device"] = self.device
            args, kwargs = _moved(bound.args, self.device), _moved(bound.kwargs, self.device)
        return own.encode_prompt(*args, **kwargs)


def text_encoders_named(folder: Path) -> dict[str, Any]:
    """The text encoders that the index in ``folder`` names, and the class of each.

    Raises:
        TextEncodersFault: none, or a class that cannot be found; or there is no such index.
    """
    if not (folder / "model_index.json").is_file():
        raise TextEncodersFault(
            f"{folder} has no model_index.json that tells which text encoders can stand apart (a modular pipeline has "
            "none); use model.text_encoders: every_rank"
        )
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    named = {
        part: value for part, value in index.items() if part.startswith("text_encoder") and isinstance(value, list)
    }
    found = {part: _class_of(part, *value) for part, value in named.items() if value[-1] is not None}
    if not found:
        raise TextEncodersFault(
            f"{index.get('_class_name')} names no text encoder that can stand apart; use model.text_encoders: "
            "every_rank"
        )
    return found


def load_text_encoders(
    folder: Path, pipe: Any, *, here: bool, encode_on: torch.device, dtype: torch.dtype, device: torch.device
) -> TextEncoders:
    """The encoders of ``pipe``, which was loaded without them.

    Args:
        folder: the model.
        here: load their weights.
        encode_on: where those stay.
        dtype: of the weights; device: that the pipeline computes on.

    Raises:
        TextEncodersFault: this pipeline encodes in another way than diffusers' usual.
    """
    if not hasattr(type(pipe), "encode_prompt"):
        raise TextEncodersFault(
            f"{type(pipe).__name__} has no encode_prompt, so what it encodes cannot be handed to other ranks; use "
            "model.text_encoders: every_rank"
        )
    named = text_encoders_named(folder)
    stand_ins = {
        part: _StandIn(part, model, model.config_class.from_pretrained(folder / part), dtype, device)
        for part, model in named.items()
    }
    modules = {
        part: model.from_pretrained(folder / part, dtype=dtype).to(encode_on).eval()
        for part, model in (named if here else {}).items()
    }
    return TextEncoders(stand_ins, modules, encode_on)


class _StandIn:
    """Of an encoder what its class says; all else is refused."""

    def __init__(self, part: str, model: type, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._part, self._model = part, model
        self.config, self.dtype, self.device = config, dtype, device

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, "_model" if name == "__class__" else name)

    def __getattr__(self, name: str) -> Any:
        raise EncoderElsewhere(
            f"the pipeline uses {self._part}.{name} besides in encode_prompt, but only the rank that encodes has it; "
            "use model.text_encoders: every_rank"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__getattr__("forward")

    def modules(self) -> Iterator[torch.nn.Module]:
        """None: pipelines look for hooks in them."""
        return iter(())


def _class_of(part: str, library: str, name: str) -> Any:
    for module in (library, f"diffusers.pipelines.{library}"):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise TextEncodersFault(f"{part} is a {name} of {library}, which is not found; use model.text_encoders: every_rank")


@functools.cache
def _on(pipeline: type, device: torch.device) -> type:
    """The same class, which says that it computes on ``device``."""
    here = property(lambda _: device)
    return type(pipeline.__name__, (pipeline,), {"device": here, "_execution_device": here})


def _moved(value: Any, device: torch.device) -> Any:
    """Equal lists, tuples and dictionaries, whose tensors are on ``device``."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
