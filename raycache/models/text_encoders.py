"""Text encoders separate from their pipeline, for one rank to encode with: on its device, on the CPU, or divided.

A stand-in has their class, config and dtype for the pipeline, but cannot be called.
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
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["EncoderElsewhere", "TextEncoders", "TextEncodersFault", "load_text_encoders", "text_encoders_named"]


class TextEncodersFault(ValueError):
    """This pipeline does not support the setting ``model.text_encoders``."""


class EncoderElsewhere(AttributeError):
    """A pipeline used a text encoder outside of its ``encode_prompt``."""


@dataclass(frozen=True)
class TextEncoders:
    """The encoders of one pipeline.

    Attributes:
        stand_ins: the pipelines' substitutes for them.
        modules: the encoders; empty on ranks that do not encode.
        device: the device of ``modules``.
    """

    stand_ins: Mapping[str, Any]
    modules: Mapping[str, torch.nn.Module]
    device: torch.device

    def encode(self, pipe: Any, *args: Any, **kwargs: Any) -> Any:
        """``pipe.encode_prompt`` with the encoders, on their device."""
        own = copy.copy(pipe)
        own.__dict__.pop("encode_prompt", None)
        for name, module in self.modules.items():
            object.__setattr__(own, name, module)  # the pipeline's __setattr__ would write the config that copies share
        if self.device != pipe.device:
            pipeline: Any = type(pipe)  # the type checker gives a class the hash of its instances
            own.__class__ = _on(pipeline, self.device)
            bound = inspect.signature(own.encode_prompt).bind(*args, **kwargs)
            if "device" in inspect.signature(own.encode_prompt).parameters:
                bound.arguments["device"] = self.device
            args, kwargs = _moved(bound.args, self.device), _moved(bound.kwargs, self.device)
        return own.encode_prompt(*args, **kwargs)


def text_encoders_named(folder: Path) -> dict[str, Any]:
    """The text encoders in the index of ``folder``, with their classes.

    Raises:
        TextEncodersFault: there are none, a class cannot be found, or there is no such index.
    """
    if not (folder / "model_index.json").is_file():
        raise TextEncodersFault(
            f"{folder} has no model_index.json with text encoders that can be separated (modular pipelines have "
            "none); use model.text_encoders: every_rank"
        )
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    named = {
        part: value for part, value in index.items() if part.startswith("text_encoder") and isinstance(value, list)
    }
    found = {part: _class_of(part, *value) for part, value in named.items() if value[-1] is not None}
    if not found:
        raise TextEncodersFault(
            f"{index.get('_class_name')} has no separable text encoder; use model.text_encoders: every_rank"
        )
    return found


def load_text_encoders(
    folder: Path,
    pipe: Any,
    *,
    here: bool,
    encode_on: torch.device,
    dtype: torch.dtype,
    device: torch.device,
    quantized: Mapping[str, Any] = MappingProxyType({}),
) -> TextEncoders:
    """Load the encoders of ``pipe``, which was loaded without them.

    Args:
        folder: the model's.
        here: whether this rank loads their weights.
        encode_on: the device that keeps them.
        dtype: of the weights; device: the pipeline's.
        quantized: transformers' configurations of parts whose weights are quantized while loading.

    Raises:
        TextEncodersFault: this pipeline has no ``encode_prompt`` as is usual in diffusers.
    """
    if not hasattr(type(pipe), "encode_prompt"):
        raise TextEncodersFault(
            f"{type(pipe).__name__} has no encode_prompt, so its embeddings cannot be sent to other ranks; use "
            "model.text_encoders: every_rank"
        )
    named = text_encoders_named(folder)
    stand_ins = {
        part: _StandIn(part, model, model.config_class.from_pretrained(folder / part), dtype, device)
        for part, model in named.items()
    }
    modules = {
        part: model.from_pretrained(folder / part, dtype=dtype, **_quantized(quantized.get(part))).to(encode_on).eval()
        for part, model in (named if here else {}).items()
    }
    return TextEncoders(stand_ins, modules, encode_on)


def _quantized(config: Any) -> dict[str, Any]:
    return {} if config is None else {"quantization_config": config}


class _StandIn:
    """The class, config and dtype of an encoder; anything else is refused."""

    def __init__(self, part: str, model: type, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._part, self._model = part, model
        self.config, self.dtype, self.device = config, dtype, device

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, "_model" if name == "__class__" else name)

    def __getattr__(self, name: str) -> Any:
        raise EncoderElsewhere(
            f"the pipeline uses {self._part}.{name} outside of encode_prompt, but only the encoding rank has it; "
            "use model.text_encoders: every_rank"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__getattr__("forward")

    def modules(self) -> Iterator[torch.nn.Module]:
        """Empty: pipelines look for hooks in submodules."""
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
    """A subclass that reports ``device`` as its execution device."""
    here = property(lambda _: device)
    return type(pipeline.__name__, (pipeline,), {"device": here, "_execution_device": here})


def _moved(value: Any, device: torch.device) -> Any:
    """Copies of lists, tuples and dictionaries with their tensors on ``device``."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
