"""How the parts of a model's folder are quantized, compared with the settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raycache.models.folder import config_of, parts_named
from raycache.quantization import Quantization
from raycache.settings import ModelSettings

__all__ = ["quantization_faults", "quantization_of", "quantizations_told", "transformers_named"]

#: torchao's configuration classes.
_KINDS: Mapping[str, Quantization] = {
    "Int8WeightOnlyConfig": "int8_weight",
    "Int8DynamicActivationInt8WeightConfig": "int8",
    "Float8WeightOnlyConfig": "fp8_weight",
    "Float8DynamicActivationFloat8WeightConfig": "fp8",
}
#: Granularity of activations with one scale per token.
_BY_TOKEN = "PerRow"


def transformers_named(folder: Path) -> list[str]:
    """Names of the parts that a pipeline calls in each step; Wan 2.2 has two."""
    return [part for part in ("transformer", "transformer_2") if part in parts_named(folder)]


def quantization_of(part: str, quantization: Quantization) -> Quantization:
    """How a part is quantized under the model's ``quantization``: encoders run once, so only their weights are."""
    if not part.startswith("text_encoder"):
        return quantization
    weights: dict[Quantization, Quantization] = {"int8": "int8_weight", "fp8": "fp8_weight"}
    return weights.get(quantization, quantization)


def quantizations_told(folder: Path) -> dict[str, str]:
    """Quantization of transformers and text encoders, by part: one of ours, another's description, or ``none``."""
    parts = [*transformers_named(folder), *_encoders(folder)]
    return {part: _told(config_of(folder, part)) for part in parts}


def quantization_faults(settings: ModelSettings, folder: Path) -> list[str]:
    """Why the model in ``folder`` cannot be quantized, or read, as the settings say; empty if it can."""
    told = quantizations_told(folder)
    if importlib.util.find_spec("torchao") is None:
        if settings.quantization != "none":
            return [f"model.quantization={settings.quantization} needs torchao: pip install 'raycache[quant]'"]
        if any(word in _KINDS.values() for word in told.values()):
            return [f"{folder} is quantized by torchao, which is not installed: pip install 'raycache[quant]'"]
    return list(_contradictions(settings, folder, told))


def _contradictions(settings: ModelSettings, folder: Path, told: Mapping[str, str]) -> Iterator[str]:
    for part, word in told.items():
        encoder = part.startswith("text_encoder")
        asked = settings.quantize_text_encoder or not encoder
        wanted = quantization_of(part, settings.quantization) if asked else "none"
        # Unquantized parts are quantized while loading.
        if word in (wanted, "none"):
            continue
        if word not in _KINDS.values():
            yield f"{folder / part} is quantized in a way that is not supported ({word})"
        elif encoder and not asked:
            yield f"{folder / part} is quantized ({word}): set model.quantize_text_encoder: true, or use another folder"
        else:
            yield (
                f"{folder / part} is quantized as {word}, but model.quantization is {settings.quantization}: set "
                f"model.quantization: {word}, or use the unquantized folder"
            )


def _encoders(folder: Path) -> list[str]:
    return [part for part, file in parts_named(folder).items() if part.startswith("text_encoder") and file != "*"]


def _told(config: Mapping[str, Any]) -> str:
    """The quantization in the config of a part."""
    said = config.get("quantization_config")
    if not said:
        return "none"
    if not isinstance(said, dict) or said.get("quant_method") != "torchao":
        return str(said.get("quant_method") if isinstance(said, dict) else said)
    kinds = {_kind(each) for each in _configs(said.get("quant_type"))}
    return kinds.pop() if len(kinds) == 1 else f"torchao, {' and '.join(sorted(kinds)) or 'of no known kind'}"


def _configs(said: Any) -> Iterator[Mapping[str, Any]]:
    """torchao's configurations in a document; there may be several, by layer name."""
    if not isinstance(said, dict):
        return
    if said.get("_type") in _KINDS:
        yield said
        return
    data = said.get("_data", said)
    # The second is an older name of the first.
    for each in (data.get("fqn_to_config") or data).values() if isinstance(data, dict) else ():
        yield from _configs(each)


def _kind(config: Mapping[str, Any]) -> str:
    kind = _KINDS[config["_type"]]
    granularity = config.get("_data", {}).get("granularity")
    named = {each.get("_type") for each in granularity} if isinstance(granularity, list) else {_BY_TOKEN}
    # With one scale for all tokens, each rank would have a different scale than a single rank.
    return kind if kind != "fp8" or named == {_BY_TOKEN} else f"fp8 with scales {sorted(map(str, named))}"
