"""Presets: one word of a request (``quality``) for cache options, held in one file per model.

``python -m raycache.tune`` makes such a file by measuring; a model without one of its own takes FLUX.1-dev's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from cache_core.options import CacheOptions, NoCacheOptions

__all__ = ["OPENAI_WORDS", "PRESET_NAMES", "PresetName", "Presets", "Quality", "load_presets", "preset_of"]

PresetName = Literal["exact", "high", "balanced", "fast"]
PRESET_NAMES: tuple[PresetName, ...] = ("exact", "high", "balanced", "fast")
Quality = Literal["exact", "high", "balanced", "fast", "low", "medium", "auto"]
"""What a request may say: a preset, or a word of OpenAI's."""
OPENAI_WORDS: dict[str, PresetName] = {"low": "fast", "medium": "balanced", "high": "high"}
"""OpenAI's words; ``auto`` is the deployment's default and no preset."""

_FOLDER = Path(__file__).parent
_OTHERS = "flux.1-dev"


class Presets(BaseModel):
    """A presets file.

    Attributes:
        model: which model it is for.
        source: what its numbers rest on, for people: "from published figures", or how they were measured.
        presets: cache options by name.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    source: str
    presets: dict[PresetName, CacheOptions] = Field(min_length=1)


def load_presets(model_path: str, file: Path | None = None) -> Presets:
    """The presets for a model.

    Args:
        model_path: ``model.path`` of the settings: ``demo``, a hub id or a folder; a file of its name
            (``black-forest-labs/FLUX.1-dev``: ``flux.1-dev.yaml``) is taken, else FLUX.1-dev's.
        file: a presets file that ``raycache.tune`` wrote; it goes before the bundled ones.

    Raises:
        ValueError: ``file`` is missing or no presets file; the message names it.
    """
    if file is None:
        named = _FOLDER / f"{Path(model_path).name.lower()}.yaml"
        file = named if named.is_file() else _FOLDER / f"{_OTHERS}.yaml"
    try:
        return Presets.model_validate(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise ValueError(f"presets file {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file} is no presets file: {error}") from None


def preset_of(quality: str, presets: dict[PresetName, CacheOptions], default: CacheOptions) -> CacheOptions:
    """The cache options that ``quality`` stands for.

    Args:
        quality: a preset's name, or a word of OpenAI's; ``auto`` gives ``default``.
        presets: of the model.
        default: of the deployment.

    Raises:
        KeyError: ``presets`` has no such preset.
    """
    if quality == "auto":
        return default
    name = OPENAI_WORDS.get(quality, quality)
    if name == "exact":
        return presets.get("exact", NoCacheOptions())
    return presets[name]
