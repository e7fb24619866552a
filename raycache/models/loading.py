"""Loading a diffusers pipeline for one rank."""

from __future__ import annotations

from typing import Any

import torch

from raycache.protocol.job import ModelFacts, ModelKind
from raycache.settings import ModelSettings

__all__ = ["load_pipeline", "model_facts"]


def load_pipeline(settings: ModelSettings, folder: str, device: torch.device) -> Any:
    """The pipeline in ``folder`` on ``device`` in the dtype of the settings, silent, ready to draw."""
    from diffusers import FluxPipeline
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = FluxPipeline.from_pretrained(folder, dtype=getattr(torch, settings.dtype)).to(device)
    pipe.set_progress_bar_config(disable=True)
    if settings.compile:
        # Regional: each block's forward, so decision code stays outside and all blocks of a class share one graph.
        for name in ("transformer_blocks", "single_transformer_blocks"):
            for block in getattr(pipe.transformer, name, ()):
                block.forward = torch.compile(block.forward)
    return pipe


def model_facts(pipe: Any, settings: ModelSettings, kind: ModelKind) -> ModelFacts:
    """Facts of a loaded pipeline."""
    transformer = pipe.transformer
    text_tokens = settings.max_sequence_length or min(int(pipe.tokenizer_2.model_max_length), 512)
    return ModelFacts(
        kind=kind,
        num_blocks=len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks),
        num_heads=transformer.config.num_attention_heads,
        text_tokens=text_tokens,
        pipeline=type(pipe).__name__,
    )
