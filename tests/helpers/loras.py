"""LoRA files for the tiny models of tests, in the format that diffusers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

#: Attention and MLP of every block.
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_mlp")


def make_lora(
    folder: Path, transformer: Any, seed: int, *, rank: int = 4, alpha: int | None = None, layers: Any = LAYERS
) -> Path:
    """A file with weights that change every image; ``transformer`` is unchanged, except for peft's empty layers."""
    config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(layers))
    transformer.add_adapter(config, adapter_name="made")
    chance = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name and ".made." in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=chance))
    state = get_peft_model_state_dict(transformer, adapter_name="made")
    FluxPipeline.save_lora_weights(
        folder,
        transformer_lora_layers={name: tensor.clone().contiguous() for name, tensor in state.items()},
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    transformer.delete_adapters("made")
    return folder / "pytorch_lora_weights.safetensors"


def fuse(pipe: Any, file: Path, scale: float) -> None:
    """Merge the LoRA permanently into the weights, as diffusers does."""
    pipe.load_lora_weights(str(file), adapter_name="fused")
    pipe.fuse_lora(adapter_names=["fused"], lora_scale=scale)
    pipe.unload_lora_weights()
