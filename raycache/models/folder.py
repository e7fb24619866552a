"""What a model's folder says of the model before it is loaded, and what it lacks. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raycache.protocol.schemas import ModelInfo

__all__ = ["folder_faults", "model_info"]

#: What FluxPipeline needs, and the file without which a part cannot be loaded; of a tokenizer, any.
_PARTS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "text_encoder_2": "config.json",
    "tokenizer": "*",
    "tokenizer_2": "*",
    "scheduler": "scheduler_config.json",
}
_WITH_WEIGHTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
_LONGEST_HEADER = 100 << 20  # safetensors' own bound


def folder_faults(folder: Path, *, weights: bool = True) -> list[str]:
    """Why no pipeline could be loaded from ``folder``; empty when nothing speaks against it.

    Args:
        folder: a model in diffusers' layout.
        weights: look at the weight files, too; False where they are yet to be downloaded.
    """
    index = _json(folder / "model_index.json")
    if not isinstance(index, dict):
        return [f"{folder / 'model_index.json'} is not JSON of a diffusers pipeline"]
    named = index.get("transformer")
    if isinstance(named, list) and named[-1] != "FluxTransformer2DModel":
        return [f"{folder} holds {index.get('_class_name')} with {named[-1]}; this service draws with FLUX pipelines"]
    faults = [f"{folder} lacks {part}/{file}" for part, file in _PARTS.items() if not any((folder / part).glob(file))]
    if weights:
        faults += [fault for part in _WITH_WEIGHTS for fault in _weight_faults(folder / part)]
    return faults


def model_info(folder: Path, max_sequence_length: int | None) -> ModelInfo | None:
    """What the gang will say of the model in ``folder``; None where the files do not tell."""
    config, index = _json(folder / "transformer" / "config.json"), _json(folder / "model_index.json")
    tokenizer = _json(folder / "tokenizer_2" / "tokenizer_config.json")
    try:
        longest = max_sequence_length or min(int(tokenizer["model_max_length"]), 512)
        return ModelInfo(
            kind="folder",
            num_blocks=config["num_layers"] + config["num_single_layers"],
            num_heads=config["num_attention_heads"],
            text_tokens=longest,
            pipeline=str(index.get("_class_name")),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _weight_faults(part: Path) -> list[str]:
    """A part's weights: one file, or every file that an index names; none cut off or a pointer to one elsewhere."""
    files = [*part.glob("*.safetensors"), *part.glob("*.bin")]
    missing: list[str] = []
    for index in part.glob("*.index.json"):
        document = _json(index)
        shards = set(document.get("weight_map", {}).values()) if isinstance(document, dict) else set()
        # A variant's index (fp16) may stand beside weights without one.
        if shards and any((part / shard).is_file() for shard in shards):
            missing += [f"{part} lacks {shard}" for shard in sorted(shards) if not (part / shard).is_file()]
    if not files:
        return [f"{part} has no weights (*.safetensors or *.bin)"]
    broken = [f"{file} is cut off or no safetensors file" for file in sorted(files) if not _whole(file)]
    return missing + broken


def _whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says; other files are taken for whole."""
    if file.suffix != ".safetensors":
        return True
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, file.stat().st_size):
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
    return file.stat().st_size == 8 + length + max(ends, default=0)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
