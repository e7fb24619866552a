"""What a model's folder tells about the model before it is loaded, and which files are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raycache.models.family import ModelFamily
from raycache.models.registry import family_of
from raycache.models.roads import splits_unevenly
from raycache.protocol.capabilities import Capabilities

__all__ = [
    "capabilities_told",
    "classes_named",
    "config_of",
    "folder_faults",
    "is_modular_folder",
    "is_whole",
    "parts_classed",
    "parts_named",
    "pipeline_class",
    "safetensors_header",
]

_LONGEST_HEADER = 100 << 20  # safetensors' own limit


def folder_faults(folder: Path, *, weights: bool = True) -> list[str]:
    """Why no pipeline could be loaded from ``folder``; empty if no reason is known.

    Args:
        folder: a model in diffusers' layout.
        weights: also check the weight files; False if they are downloaded later.
    """
    index = _index(folder)
    if not isinstance(index, dict):
        return [f"{folder / 'model_index.json'} is not the JSON of a diffusers pipeline"]
    family, named = family_of(pipeline_class(folder)), _class_named(index.get("transformer"))
    if named and family.transformer and named != family.transformer:
        held = f"{folder} contains {index.get('_class_name')} with {named}"
        return [f"{held}; a model of {family.called} has {family.transformer}"]
    parts = family.parts or parts_named(folder)
    faults = [f"{folder} has no {part}/{file}" for part, file in parts.items() if not any((folder / part).glob(file))]
    if weights:
        models = family.with_weights or [part for part, file in parts.items() if file == "config.json"]
        faults += [fault for part in models for fault in _weight_faults(folder / part)]
    return faults


def capabilities_told(folder: Path, max_sequence_length: int | None) -> Capabilities | None:
    """The capabilities that the gang will report for the model in ``folder``; None if its files do not say."""
    config, pipeline = _json(folder / "transformer" / "config.json"), pipeline_class(folder)
    family = family_of(pipeline)
    try:
        return told_by(
            family,
            _json(folder / "vae" / "config.json") or {},
            _index(folder) or {},
            kind="folder",
            num_blocks=family.num_blocks(config),
            num_heads=family.num_heads(config),
            text_tokens=max_sequence_length or family.text_tokens_told(folder),
            pipeline=pipeline,
            uneven=splits_unevenly(_transformer_class(folder)),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def told_by(
    family: ModelFamily, vae: Mapping[str, Any], config: Mapping[str, Any], *, pipeline: str, **found: Any
) -> Capabilities:
    """The capabilities of a model of ``family``.

    Args:
        vae: config of its VAE, empty if it has none.
        config: the pipeline's, from its index.
        pipeline: class name.
        found: other capabilities, from its files or the loaded pipeline.
    """
    return Capabilities(
        **found,
        pipeline=pipeline,
        token_side=family.side_with(vae),
        tasks=tuple(family.tasks),
        negative_prompt=family.negative_prompt,
        true_cfg=family.true_cfg,
        cfg_calls=family.guides_by_calls(config),
        max_inputs=family.max_inputs,
        frame_step=family.frame_step,
        fps=family.fps,
        previews=family.previews,
    )


def pipeline_class(folder: Path) -> str:
    """Class name of the pipeline in the index of ``folder``; "None" if it has none."""
    index = _index(folder)
    return str(index.get("_class_name")) if isinstance(index, dict) else "None"


def parts_classed(folder: Path) -> dict[str, str]:
    """Class of each part in the index of ``folder``, by name."""
    index = _index(folder)
    return _classes_named(index) if isinstance(index, dict) else {}


def parts_named(folder: Path) -> dict[str, str]:
    """A file that each part in the index of ``folder`` needs, by the part's name."""
    return {part: _file_of(name) for part, name in parts_classed(folder).items()}


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """The config of a part; empty if it has none."""
    config = _json(folder / part / "config.json")
    return config if isinstance(config, dict) else {}


def classes_named(folder: Path) -> list[tuple[str, str]]:
    """Library and class of each part in the index of ``folder``."""
    index = _index(folder)
    entries = index.values() if isinstance(index, dict) else ()
    return [(str(entry[0]), name) for entry in entries if (name := _class_named(entry)) and entry[0]]


def is_modular_folder(folder: Path) -> bool:
    """Whether ``folder`` has the index of a modular pipeline, but not of an ordinary one."""
    return not (folder / "model_index.json").is_file() and (folder / "modular_model_index.json").is_file()


def _index(folder: Path) -> Any:
    return _json(folder / ("modular_model_index.json" if is_modular_folder(folder) else "model_index.json"))


def _class_named(entry: object) -> str:
    """Class of a component from its index entry: [library, class], and its source for a modular pipeline."""
    if not isinstance(entry, list | tuple) or not 2 <= len(entry) <= 3:
        return ""
    if len(entry) == 3 and entry[1] is None and isinstance(entry[2], dict):  # not loaded when the index was written
        hint = entry[2].get("type_hint")
        return str(hint[-1]) if isinstance(hint, list | tuple) and hint and hint[-1] else ""
    return str(entry[1]) if entry[1] else ""


def _classes_named(index: Mapping[str, Any]) -> dict[str, str]:
    named = {part: _class_named(value) for part, value in index.items() if part[0] != "_"}
    return {part: name for part, name in named.items() if name}


def _file_of(name: str) -> str:
    """The file that a component of this class needs."""
    if "Scheduler" in name:
        return "scheduler_config.json"
    if name.endswith("Guidance"):
        return "guider_config.json"
    return "*" if re.search("Tokenizer|Processor|FeatureExtractor", name) else "config.json"


def _transformer_class(folder: Path) -> str:
    """Class of the transformer in the index; empty if it has none."""
    index = _index(folder)
    return _class_named(index.get("transformer")) if isinstance(index, dict) else ""


def _weight_faults(part: Path) -> list[str]:
    """Faults of a part's weights: missing files, truncated ones, or Git LFS pointers."""
    files = [*part.glob("*.safetensors"), *part.glob("*.bin")]
    missing: list[str] = []
    for index in part.glob("*.index.json"):
        document = _json(index)
        shards = set(document.get("weight_map", {}).values()) if isinstance(document, dict) else set()
        # A variant's index (fp16) may exist next to weights without one.
        if shards and any((part / shard).is_file() for shard in shards):
            missing += [f"{part} has no {shard}" for shard in sorted(shards) if not (part / shard).is_file()]
    if not files:
        return [f"{part} has no weights (*.safetensors or *.bin)"]
    broken = [f"{file} is truncated, or not a safetensors file" for file in sorted(files) if not is_whole(file)]
    return missing + broken


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says; other files count as complete."""
    if file.suffix != ".safetensors":
        return True
    try:
        header, length = _header(file)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return file.stat().st_size == 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def safetensors_header(file: Path) -> dict[str, Any]:
    """The tensors of a complete safetensors file, by name: shape, dtype and offsets."""
    return _header(file)[0]


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header before the tensors, and its length in bytes."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, file.stat().st_size):
            raise ValueError(f"{file} has no safetensors header")
        header: dict[str, Any] = json.loads(opened.read(length))
    return header, length


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
