"""diffusers' modular pipelines, loaded and called like others: inputs by name, and one workflow per task."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from raycache.models.family import ModelFamily

__all__ = ["call_modular", "guide", "inputs_of", "is_modular", "load_modular", "workflow_of"]

#: Names of the results of modular pipelines.
_RESULTS = ("images", "videos")


def is_modular(pipe: object) -> bool:
    """Whether ``pipe`` is made of blocks, and takes their inputs."""
    return hasattr(pipe, "load_components") and hasattr(pipe, "blocks")  # checking its class would need an import


def load_modular(
    folder: Path, family: ModelFamily, dtype: torch.dtype, quantized: Mapping[str, Any] | None = None
) -> Any:
    """The modular pipeline in ``folder`` with the components that its blocks need, all of them from there.

    Args:
        quantized: how to quantize components while loading, by name.

    Raises:
        OSError: a component is missing, or cannot be loaded.
        AttributeError: diffusers has no such pipeline.
    """
    import diffusers

    index = json.loads((folder / "modular_model_index.json").read_text(encoding="utf-8"))
    of = getattr(diffusers, index["_class_name"])
    named = getattr(diffusers, str(index.get("_blocks_class_name")), None)
    # An index may name custom blocks; like diffusers, use the default ones then.
    blocks = (named if named is not None and named.block_classes else getattr(diffusers, of.default_blocks_name))()
    for step in family.left_out:
        blocks.sub_blocks.pop(step, None)
    pipe = of(blocks=blocks, pretrained_model_name_or_path=str(folder))
    missing = [name for name, part in pipe.components.items() if part is None]
    for name in missing:
        # An index may refer to other repositories; the files checked before the start are in this folder.
        how = {"quantization_config": quantized[name]} if quantized and name in quantized else {}
        pipe.load_components(name, pretrained_model_name_or_path=str(folder), subfolder=name, dtype=dtype, **how)
    if lacks := [name for name in missing if getattr(pipe, name, None) is None]:
        raise OSError(f"{folder}: {', '.join(lacks)} could not be loaded; the log has diffusers' messages")
    _silence(pipe.blocks)
    return pipe


def workflow_of(pipe: Any, workflow: str) -> Any:
    """Another pipeline over the same components that runs only this workflow of its blocks."""
    made = type(pipe)(blocks=pipe.blocks.get_workflow(workflow))
    for name in made.components:
        setattr(made, name, getattr(pipe, name))
    _silence(made.blocks)
    return made


def call_modular(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """The images or videos of a call with these arguments."""
    named = {each.name for each in pipe.blocks.outputs}
    return pipe(**arguments, output=next(name for name in _RESULTS if name in named))


def inputs_of(pipe: Any) -> Collection[str]:
    """Names of the inputs of a call."""
    return {each.name for each in pipe.blocks.inputs if each.name}


def guide(pipe: Any, scale: float) -> None:
    """Set the guidance ``scale`` of the job's own guider, if it is set there and not by an argument."""
    if getattr(pipe, "guider", None) is not None:
        pipe.guider.guidance_scale = scale


def _silence(blocks: Any) -> None:
    """Turn off the progress bars of all nested blocks."""
    if hasattr(blocks, "set_progress_bar_config"):
        blocks.set_progress_bar_config(disable=True)
    for block in blocks.sub_blocks.values():
        _silence(block)
