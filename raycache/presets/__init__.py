"""Presets: named cache options (a request's ``quality``), in one file per model.

``python -m raycache.tune`` makes such a file by measuring. A model without one has ``exact`` only: a threshold that
fits one model harms the images of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cache_core.options import CacheOptions, NoCacheOptions
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
"""What a request may say: a preset, or a word of OpenAI's."""
OPENAI_WORDS: dict[str, PresetName] = {
    "low": "fast",
    "medium": "balanced",
    "high": "high",  # a preset of ours and a word of OpenAI's: where it is missing the nearest is taken, as for those
    "standard": "balanced",
    "hd": "high",
    "xhigh": "exact",
    "max": "exact",
}
"""OpenAI's words, each with the preset nearest to it: never a coarser one, so what is above ``high`` is ``exact``.

``auto`` is the deployment's default and no preset.
"""
_OWN_WORDS = frozenset({"low", "medium", "high"})
"""Those that are documented as presets; the others are other models' words."""

_FOLDER = Path(__file__).parent
_BUNDLED_MODEL = "demo"


class Presets(BaseModel):
    """A presets file.

    Attributes:
        model: which model it is for.
        source: what its numbers rest on, for people: "from published figures", or how they were measured.
        quantization: of the model that they are for: thresholds see the noise of it in every difference.
        presets: cache options by name.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    source: str
    quantization: Quantization = "none"
    presets: dict[PresetName, CacheOptions] = Field(min_length=1)


def load_presets(model_path: str, file: Path | None = None, quantization: Quantization = "none") -> Presets:
    """The presets for a model.

    Args:
        model_path: ``model.path`` of the settings: ``demo``, a hub id or a folder; a file of its name
            (``black-forest-labs/FLUX.1-dev``: ``flux.1-dev.yaml``, quantized ``flux.1-dev.fp8.yaml``) is taken. For any
            other model there is ``exact`` only, and ``source`` says why.
        file: a presets file that ``raycache.tune`` wrote; it goes before the bundled ones, whatever it is for
            (:func:`presets_warning`).
        quantization: of the model.

    Raises:
        ValueError: ``file`` is missing or no presets file; the message names it, and the line.
    """
    if file is None:
        name = Path(model_path).name.lower()
        file = _FOLDER / f"{name}{'' if quantization == 'none' else f'.{quantization}'}.yaml"
        # A folder that happens to be called so is not the bundled model.
        if not file.is_file() or (name == _BUNDLED_MODEL and model_path != _BUNDLED_MODEL):
            reason = _unknown(model_path, quantization)
            exact: dict[PresetName, CacheOptions] = {"exact": NoCacheOptions()}
            return Presets(model=model_path, source=reason, quantization=quantization, presets=exact)
    try:
        return load_as(file, Presets, "presets file")
    except OSError as error:
        raise ValueError(f"presets file {file} cannot be read: {error.strerror}") from None


def presets_warning(model_path: str, file: Path | None, quantization: Quantization) -> str | None:
    """What an operator should know of presets that are for another quantization; None where they are for this one.

    Raises:
        ValueError: as :func:`load_presets`.
    """
    found = load_presets(model_path, file, quantization)
    if found.quantization == quantization:
        return None
    return (
        f"presets file {file} is for quantization {found.quantization}, and the model has {quantization}: its "
        "thresholds may cache more or less than they were measured to. `python -m raycache.tune --quantization "
        f"{quantization}` makes a file for it"
    )


def _unknown(model_path: str, quantization: Quantization) -> str:
    what, option = repr(model_path), ""
    if quantization != "none":
        what, option = f"{what} with quantization {quantization}", f" --quantization {quantization}"
    return (
        f"no presets are known for {what}, so `quality` has `exact` only: `python -m raycache.tune{option}` makes a "
        "file of them, and `model.presets` names it"
    )


def preset_of(quality: str, presets: Mapping[PresetName, CacheOptions], default: CacheOptions) -> CacheOptions:
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
    name = preset_name(quality, presets)
    return presets.get(name, NoCacheOptions()) if name == "exact" else presets[name]


def preset_name(quality: str, presets: Mapping[PresetName, CacheOptions]) -> PresetName:
    """The preset that any word but ``auto`` stands for; ``exact`` is always there.

    For a word of OpenAI's that is the nearest of those there are, finer before coarser: clients send such words to
    models that they know nothing of.

    Raises:
        KeyError: ``presets`` has no such preset, and none to take for it.
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
    """What a client should know that asked for a quality which is generated as another.

    Nothing where the preset is gone: presets may change while a job waits.
    """
    try:
        name = "auto" if quality == "auto" else preset_name(quality, presets)
    except KeyError:
        return []
    if quality in OPENAI_WORDS and quality not in _OWN_WORDS:
        return [f"`quality: {quality}` is no preset here; drawn as the nearest, `{name}`"]
    if name != (wanted := OPENAI_WORDS.get(quality, quality)):
        meant = "" if wanted == quality else f", which `{quality}` stands for"
        return [f"`quality`: this model has no preset `{wanted}`{meant}; drawn as the nearest, `{name}`"]
    return []
