"""Quantizing a model while it is loaded, by torchao through the configurations of diffusers and transformers.

torchao is imported only when it is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raycache.models.family import ModelFamily
from raycache.models.quantized_folder import (
    quantization_faults,
    quantization_of,
    quantizations_told,
)
from raycache.quantization import Quantization, card_misfit
from raycache.settings import ModelSettings

__all__ = ["CannotQuantize", "check_quantized", "configs_of", "quantized_layers", "refuse_what_does_not_fit"]

#: Not quantized in encoders with image input: the vision parts, and outputs that no pipeline reads.
_KEPT_IN_ENCODERS = ["lm_head", r".*\bvisual", r".*\bvision_tower", r".*\bmulti_modal_projector"]


class CannotQuantize(ValueError):
    """The model cannot be quantized as set, or not on this device; the message says what would be right."""


def refuse_what_does_not_fit(settings: ModelSettings, folder: Path, device: torch.device) -> None:
    """Before reading weights, check that the settings fit the model in ``folder`` and this device.

    Raises:
        CannotQuantize: they do not.
    """
    faults = quantization_faults(settings, folder)
    on_card = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_card else None
    capability = torch.cuda.get_device_capability(device) if on_card else None
    if misfit := card_misfit(settings.quantization, device.type, name, capability):
        faults.append(misfit)
    if faults:
        raise CannotQuantize("; ".join(faults))


def configs_of(settings: ModelSettings, family: ModelFamily, folder: Path) -> dict[str, Any]:
    """How to quantize parts while loading, by part; without those that are quantized in the folder."""
    if settings.quantization == "none":
        return {}
    found: dict[str, Any] = {}
    for part, told in quantizations_told(folder).items():
        if told == "none":
            kind = quantization_of(part, settings.quantization)
            if not part.startswith("text_encoder"):
                found[part] = _of_transformer(kind, family)
            elif settings.quantize_text_encoder:
                found[part] = _of_encoder(kind)
    return found


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with weights quantized by torchao, by name; without LoRA layers around them."""
    from torchao.utils import TorchAOBaseTensor

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and isinstance(module.weight, TorchAOBaseTensor)
    }


def check_quantized(models: Mapping[str, nn.Module], family: ModelFamily) -> None:
    """Check that something was quantized: wrong names of blocks would change nothing, without an error.

    Raises:
        CannotQuantize: nothing in one of these models was quantized.
    """
    # It warns for every layer that a LoRA cannot be merged, which is never done.
    warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass.*")
    for part, model in models.items():
        if not quantized_layers(model):
            raise CannotQuantize(
                f"{part}: {type(model).__name__} has no linear layers in {', '.join(family.quantized)}, which is "
                f"what is quantized of {family.called}; set model.quantization: none"
            )


def _of_transformer(kind: Quantization, family: ModelFamily) -> Any:
    from diffusers import TorchAoConfig
    from torchao.quantization import FqnToConfig

    blocks, kept = "|".join(family.quantized), "|".join(family.kept)
    layers = rf"re:(?:{blocks})\.\d+\.(?!(?:.*\.)?(?:{kept})).*"
    return TorchAoConfig(FqnToConfig({layers: _config(kind)}))


def _of_encoder(kind: Quantization) -> Any:
    from transformers import TorchAoConfig

    return TorchAoConfig(_config(kind), modules_to_not_convert=list(_KEPT_IN_ENCODERS))


def _config(kind: Quantization) -> Any:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )

    return {
        "int8_weight": Int8WeightOnlyConfig,
        "int8": Int8DynamicActivationInt8WeightConfig,
        "fp8_weight": Float8WeightOnlyConfig,
        # With one scale for the whole tensor, each rank would have a different scale than a single rank.
        "fp8": lambda: Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
    }[kind]()
