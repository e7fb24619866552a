"""Loading a diffusers pipeline for one rank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from raycache.models.compiling import BlockCompiler
from raycache.models.denoisers import blocks_of, denoisers_of
from raycache.models.direct_attention import attend_directly
from raycache.models.folder import classes_named, is_modular_folder, pipeline_class, told_by
from raycache.models.modular import load_modular
from raycache.models.quantization import check_quantized, configs_of, refuse_what_does_not_fit
from raycache.models.registry import family_of
from raycache.models.roads import splits_unevenly
from raycache.protocol.capabilities import Capabilities, ModelKind
from raycache.protocol.lora import LoraChoice
from raycache.settings import ModelSettings

__all__ = ["capabilities_of", "import_pipeline", "load_pipeline"]


def import_pipeline(folder: Path) -> None:
    """Import what loading the pipeline in ``folder`` will need, of diffusers and transformers."""
    _class_of(pipeline_class(folder))
    for library, name in classes_named(folder):
        # What is not there is told when it is loaded.
        with contextlib.suppress(ImportError, AttributeError, RuntimeError):
            getattr(import_module(library), name)


def load_pipeline(
    settings: ModelSettings,
    folder: str,
    device: torch.device,
    *,
    without: Iterable[str] = (),
    ended: Callable[[str], None] = lambda stage: None,
    compiler: BlockCompiler | None = None,
) -> Any:
    """The pipeline in ``folder`` on ``device`` in the dtype of the settings, silent, ready to generate.

    Args:
        without: parts that are left out; a modular pipeline has all.
        ended: told when a stage is over: read, copy.
        compiler: of the denoisers' blocks, if the settings say so; default: a new one.

    Raises:
        CannotQuantize: the settings' quantization does not fit the folder, or the device; no weights were read then.
    """
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    refuse_what_does_not_fit(settings, Path(folder), device)
    pipe = _loaded(Path(folder), settings, without)
    ended("read")
    pipe.to(device)
    ended("copy")
    if settings.compiles(device.type):
        compiler = compiler or BlockCompiler()
        prepare = compiler.compile
    else:
        prepare = attend_directly
    for denoiser in denoisers_of(pipe).values():
        prepare(denoiser)
    return pipe


def capabilities_of(pipe: Any, settings: ModelSettings, kind: ModelKind) -> Capabilities:
    """What a loaded pipeline is."""
    family = family_of(type(pipe).__name__, kind)
    denoisers = list(denoisers_of(pipe).values())
    try:
        heads = family.num_heads(denoisers[0].config)
    except (KeyError, TypeError, IndexError):
        heads = 0  # of a family that nobody described; splitting it looks for itself
    return told_by(
        family,
        dict(pipe.vae.config) if getattr(pipe, "vae", None) is not None else {},
        dict(pipe.config),
        kind=kind,
        num_blocks=min((len(blocks_of(denoiser)) for denoiser in denoisers), default=0),
        num_heads=heads,
        text_tokens=settings.max_sequence_length or family.text_tokens(pipe),
        pipeline=type(pipe).__name__,
        uneven=all(splits_unevenly(type(denoiser).__name__) for denoiser in denoisers),
        quantization=settings.quantization,
        loras=tuple(LoraChoice(name, lora.scale) for name, lora in settings.loras.items()),
    )


def _loaded(folder: Path, settings: ModelSettings, without: Iterable[str]) -> Any:
    name, dtype = pipeline_class(folder), getattr(torch, settings.dtype)
    family = family_of(name)
    without = set(without)
    quantized = {part: how for part, how in configs_of(settings, family, folder).items() if part not in without}
    if is_modular_folder(folder):
        pipe = load_modular(folder, family, dtype, quantized)
    else:
        how = dict.fromkeys(without) | (_quantized(quantized) if quantized else {})
        pipe = _class_of(name).from_pretrained(str(folder), dtype=dtype, **how)
        pipe.set_progress_bar_config(disable=True)
    if settings.quantization != "none":
        check_quantized(denoisers_of(pipe), family)
    return pipe


def _quantized(configs: dict[str, Any]) -> dict[str, Any]:
    """As diffusers takes them for the parts of a pipeline."""
    from diffusers import PipelineQuantizationConfig

    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=configs)}


def _class_of(pipeline: str) -> Any:
    """diffusers' class of this name, or what finds out by itself which one it is."""
    import diffusers

    return getattr(diffusers, pipeline, diffusers.DiffusionPipeline)
