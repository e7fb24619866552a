"""Loading a diffusers pipeline for one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cache_core.blocks import find_blocks
from raycache.models.folder import pipeline_class
from raycache.models.registry import family_of
from raycache.protocol.capabilities import Capabilities, ModelKind
from raycache.settings import ModelSettings

__all__ = ["capabilities_of", "load_pipeline"]


def load_pipeline(settings: ModelSettings, folder: str, device: torch.device) -> Any:
    """The pipeline in ``folder`` on ``device`` in the dtype of the settings, silent, ready to generate."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = family_of(pipeline_class(Path(folder))).load(folder, getattr(torch, settings.dtype)).to(device)
    pipe.set_progress_bar_config(disable=True)
    if settings.compile:
        # Regional: each block's forward, so decision code stays outside and all blocks of a class share one graph.
        for block in find_blocks(pipe.transformer):
            module: Any = block.module  # a method is exchanged, which types do not foresee
            module.forward = torch.compile(module.forward)
    return pipe


def capabilities_of(pipe: Any, settings: ModelSettings, kind: ModelKind) -> Capabilities:
    """What a loaded pipeline is."""
    family = family_of(type(pipe).__name__, kind)
    return Capabilities(
        kind=kind,
        num_blocks=len(find_blocks(pipe.transformer)),
        num_heads=family.num_heads(pipe.transformer.config),
        text_tokens=settings.max_sequence_length or family.text_tokens(pipe),
        pipeline=type(pipe).__name__,
        token_side=family.token_side,
    )
