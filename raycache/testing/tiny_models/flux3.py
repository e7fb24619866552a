"""FLUX.3: a modular pipeline, which diffusers can only save once its parts have a source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raycache.testing.tiny_models.flux2 import flux2_autoencoder
from raycache.testing.tiny_models.qwen_texts import qwen3_vl, qwen_processor, qwen_tokenizer

__all__ = ["ModularParts", "flux3", "flux3_distilled"]

_TEXT = 16
_LAYERS = 33  # the prompt is read after the 4th, the 8th, and so on to the 32nd


class ModularParts:
    """Parts of a modular pipeline, saved as in a folder of the hub.

    Attributes:
        components: the parts, by name.
    """

    def __init__(self, pipeline: str, blocks: str, components: Mapping[str, Any]) -> None:
        self._pipeline, self._blocks, self.components = pipeline, blocks, components

    def save_pretrained(self, folder: Path) -> None:
        """Save all parts, and the index: each part's class, and its source repository."""
        import diffusers

        index: dict[str, Any] = {
            "_blocks_class_name": self._blocks,
            "_class_name": self._pipeline,
            "_diffusers_version": diffusers.__version__,
        }
        for name, part in self.components.items():
            part.save_pretrained(Path(folder, name))
            kind = [type(part).__module__.split(".")[0], type(part).__name__]
            source = {"pretrained_model_name_or_path": "somebody/flux-3", "subfolder": name}
            index[name] = [*kind, {**source, "revision": None, "variant": None, "type_hint": kind}]
        Path(folder, "modular_model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def flux3() -> ModularParts:
    """Guided by a second call."""
    return ModularParts("Flux3ModularPipeline", "Flux3AutoBlocks", _parts())


def flux3_distilled() -> ModularParts:
    """Calls also get the next timestep."""
    return ModularParts("Flux3DistilledModularPipeline", "Flux3DistilledAutoBlocks", _parts(flow_map=True))


def _parts(**of_transformer: Any) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel

    vae = flux2_autoencoder()
    channels = 4 * vae.config["latent_channels"]
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae,
        "text_encoder": qwen3_vl(_TEXT, _LAYERS),
        "tokenizer": qwen_processor(qwen_tokenizer()),
        "transformer": Flux3Transformer2DModel(
            in_channels=channels,
            cond_in_channels=channels,
            num_layers=2,
            num_single_layers=4,
            num_attention_heads=4,
            attention_head_dim=16,
            joint_attention_dim=8 * _TEXT,
            axes_dims_rope=(4, 4, 4, 4),
            **of_transformer,
        ),
    }
