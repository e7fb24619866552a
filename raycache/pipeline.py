"""Loading a diffusers pipeline for one rank: from a folder, the hub, or one of the models this project makes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from raycache.job import ModelFacts, ModelKind, ModelSource
from raycache.settings import ModelSettings

__all__ = ["ModelFacts", "ModelKind", "ModelNotFound", "ModelSource", "load_pipeline", "model_facts", "prepare_model"]


class ModelNotFound(RuntimeError):
    """The model cannot be had; the message names it, where it was looked for, and what to set."""


def prepare_model(settings: ModelSettings) -> ModelSource:
    """Turn ``settings.path`` into a local folder: built (``noise``), bundled (``demo``), as it is, or downloaded.

    Call it once per gang before the ranks load, so that one process builds or downloads and not all of them.

    Raises:
        ModelNotFound: a path that is no model folder, a hub id that is neither in the cache nor to be had, or the
            bundled model is missing.
    """
    if settings.path == "noise":
        from raycache.demo.noise import build_noise_model

        return str(build_noise_model(_cache_folder(settings) / "noise-flux")), "noise"
    if settings.path == "demo":
        from raycache.demo import demo_model_path

        try:
            return str(demo_model_path()), "demo"
        except FileNotFoundError as error:
            raise ModelNotFound(str(error)) from None
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ModelNotFound(f"{folder} is no diffusers model: it has no model_index.json")
        return str(folder), _kind_of_folder(folder)
    if settings.path.startswith((".", "/", "~")) or settings.path.count("/") != 1:
        raise ModelNotFound(
            f"model.path {settings.path!r} is neither an existing folder nor a hub id (`owner/name`), `demo` or `noise`"
        )
    return _fetch(settings, settings.path), "hub"


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


def _fetch(settings: ModelSettings, hub_id: str) -> str:
    """The folder of a hub model, downloaded or found in the cache; one clear error instead of a stack of retries."""
    from huggingface_hub import constants, snapshot_download

    try:
        # Looks into the cache by itself when the hub does not answer.
        return snapshot_download(
            hub_id,
            revision=settings.revision,
            cache_dir=settings.cache_dir,
            local_files_only=settings.local_files_only,
            etag_timeout=10,
            # FLUX repositories carry the weights twice: the single-file copies are not read by diffusers.
            allow_patterns=["*.json", "*/*"],
        )
    except Exception as error:
        reason = error
    cache = settings.cache_dir or constants.HF_HUB_CACHE
    token = "is set" if os.environ.get("HF_TOKEN") else "is not set"
    raise ModelNotFound(
        f"model {hub_id!r} is not in the cache {cache} and cannot be fetched ({type(reason).__name__}: "
        f"{str(reason).splitlines()[0][:200]}). Set model.path to a local folder, or HF_HOME (model.cache_dir) to a "
        f"cache that has it, or HF_TOKEN (it {token}; gated models need it and an accepted licence), and see that the "
        "hub can be reached from every node"
    ) from None


def _cache_folder(settings: ModelSettings) -> Path:
    return settings.cache_dir or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raycache"


def _kind_of_folder(folder: Path) -> ModelKind:
    marker = folder / "raycache_model.json"
    try:
        kind = json.loads(marker.read_text())["kind"]
    except (OSError, ValueError, LookupError, TypeError):
        return "folder"
    return kind if kind in ("noise", "demo") else "folder"
