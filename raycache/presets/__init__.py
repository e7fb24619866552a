"""Presets: named cache options (a request's ``quality``), in one file per model.

``python -m raycache.tune`` measures and writes such a file. A model without one has only ``exact``: a threshold that
fits one model harms the images of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cache_core.options import CacheOptions, NoCacheOptions
from raycache.presets.auto import ForecastCurve
from raycache.quantization import Quantization
from raycache.yaml_files import load_as

__all__ = [
    "OPENAI_WORDS",
    "PRESET_NAMES",
    "PresetName",
    "Presets",
    "Quality",
    "load_presets",
    "preset_name",
    "preset_of",
    "presets_warning",
    "quality_warnings",
]

PresetName = Literal["exact", "high", "balanced", "fast"]
PRESET_NAMES: tuple[PresetName, ...] = ("exact", "high", "balanced", "fast")
Quality = Literal[
    "exact", "high", "balanced", "fast", "low", "medium", "standard", "hd", "xhigh", "max", "auto"
]  # fmt: skip
"""Values of a request's ``quality``: a preset, or one of OpenAI's values."""
OPENAI_WORDS: dict[str, PresetName] = {
    "low": "fast",
    "medium": "balanced",
    "high": "high",  # a preset of ours and a value of OpenAI's: if missing, the nearest is used, as for those
    "standard": "balanced",
    "hd": "high",
    "xhigh": "exact",
    "max": "exact",
}
"""OpenAI's values, each with the nearest preset, never a coarser one: above ``high`` is ``exact``.

``auto`` is the deployment's default, not a preset.
"""
_OWN_WORDS = frozenset({"low", "medium", "high"})
"""The values documented as presets; the others belong to other models."""

_FOLDER = Path(__file__).parent
_BUNDLED_MODEL = "demo"


class Presets(BaseModel):
    """A presets file.

    Attributes:
        model: the model that it is for.
        source: where its numbers come from, for users: "from published figures", or how they were measured.
        quantization: quantization of that model: it adds noise to every difference that thresholds apply to.
        presets: cache options by name.
        curve: PSNR over the threshold of ForecastCache, for goals in dB (``{"type": "auto"}``).
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    source: str
    quantization: Quantization = "none"
    presets: dict[PresetName, CacheOptions] = Field(min_length=1)
    curve: ForecastCurve | None = None


def load_presets(model_path: str, file: Path | None = None, quantization: Quantization = "none") -> Presets:
    """The presets for a model.

    Args:
        model_path: ``model.path`` of the settings: ``demo``, a hub id or a folder; a file of its name
            (``black-forest-labs/FLUX.1-dev``: ``flux.1-dev.yaml``, quantized ``flux.1-dev.fp8.yaml``) is taken. For any
            other model there is ``exact`` only, and ``source`` says why.
        file: a presets file that ``raycache.tune`` wrote; it takes precedence over the bundled ones, for any model
            (:func:`presets_warning`).
        quantization: the model's.

    Raises:
        ValueError: ``file`` is missing or not a presets file; the message names it, and the line.
    """
    if file is None:
        name = Path(model_path).name.lower()
        file = _FOLDER / f"{name}{'' if quantization == 'none' else f'.{quantization}'}.yaml"
        # A folder with the same name is not the bundled model.
        if not file.is_file() or (name == _BUNDLED_MODEL and model_path != _BUNDLED_MODEL):
            reason = _unknown(model_path, quantization)
            exact: dict[PresetName, CacheOptions] = {"exact": NoCacheOptions()}
            return Presets(model=model_path, source=reason, quantization=quantization, presets=exact)
    try:
        return load_as(file, Presets, "presets file")
    except OSError as error:
        raise ValueError(f"presets file {file} cannot be read: {error.strerror}") from None


def presets_warning(model_path: str, file: Path | None, quantization: Quantization) -> str | None:
    """A warning for the operator if the presets are for another quantization; else None.

    Raises:
        ValueError: as :func:`load_presets`.
    """
    found = load_presets(model_path, file, quantization)
    if found.quantization == quantization:
        return None
    return (
        f"presets file {file} is for quantization {found.quantization}, but the model has {quantization}: its "
        "thresholds may cache more or less than measured. `python -m raycache.tune --quantization "
        f"{quantization}` makes a file for it"
    )


def _unknown(model_path: str, quantization: Quantization) -> str:
    what, option = repr(model_path), ""
    if quantization != "none":
        what, option = f"{what} with quantization {quantization}", f" --quantization {quantization}"
    return (
        f"no presets are known for {what}, so `quality` has `exact` only: `python -m raycache.tune{option}` writes a "
        "presets file to set as `model.presets`"
    )


def preset_of(quality: str, presets: Mapping[PresetName, CacheOptions], default: CacheOptions) -> CacheOptions:
    """The cache options of a ``quality``.

    Args:
        quality: a preset's name, or a value of OpenAI's; ``auto`` gives ``default``.
        presets: the model's.
        default: the deployment's.

    Raises:
        KeyError: ``presets`` has no such preset.
    """
    if quality == "auto":
        return default
    name = preset_name(quality, presets)
    return presets.get(name, NoCacheOptions()) if name == "exact" else presets[name]


def preset_name(quality: str, presets: Mapping[PresetName, CacheOptions]) -> PresetName:
    """The preset for any value except ``auto``; ``exact`` always exists.

    For a value of OpenAI's that is the nearest existing one, finer before coarser: clients send such values to models
    that they know nothing about.

    Raises:
        KeyError: ``presets`` has no such preset, and none can replace it.
    """
    wanted = OPENAI_WORDS.get(quality, quality)
    own = next((name for name in PRESET_NAMES if name == wanted), None)
    if own is not None and (own == "exact" or own in presets):
        return own
    if quality not in OPENAI_WORDS or not presets:
        raise KeyError(wanted)
    place = PRESET_NAMES.index(wanted)
    finer = [name for name in PRESET_NAMES[:place] if name in presets]
    return finer[-1] if finer else next(name for name in PRESET_NAMES[place:] if name in presets)


def quality_warnings(quality: str, presets: Mapping[PresetName, CacheOptions]) -> list[str]:
    """Warnings for a client whose ``quality`` is replaced by another preset.

    None if the preset no longer exists: presets may change while a job waits.
    """
    try:
        name = "auto" if quality == "auto" else preset_name(quality, presets)
    except KeyError:
        return []
    if quality in OPENAI_WORDS and quality not in _OWN_WORDS:
        return [f"`quality: {quality}` is not a preset here; the nearest, `{name}`, was used"]
    if name != (wanted := OPENAI_WORDS.get(quality, quality)):
        meant = "" if wanted == quality else f", which `{quality}` stands for"
        return [f"`quality`: this model has no preset `{wanted}`{meant}; the nearest, `{name}`, was used"]
    return []
