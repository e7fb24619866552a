"""The interface of a model family: all that differs between FLUX and the other models of diffusers.

Most of it is data. A pipeline brings its own encoding and its own tail, and takes arguments by name
(:mod:`raycache.models.arguments`); a family defines what requests may use, and what cannot be read from the files.
Imports no torch, nor do the families before a pipeline is loaded: the builder and the engine use them, too.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from raycache.protocol.capabilities import Task
from raycache.size import Size

if TYPE_CHECKING:
    import numpy as np
    import torch

    from raycache.protocol.job import Job
from raycache.protocol.sound import Sound

__all__ = ["ModelFamily", "OwnModel", "VideoFamily", "tokens_told"]


class ModelFamily:
    """A family. It has no state: methods that need a pipeline get it as an argument.

    Attributes:
        called: name of the family for messages; transformer: class that ``model_index.json`` must have, empty for any.
        parts: the folders that the pipeline is loaded from, each with a file that it must have (tokenizers: any).
            Empty: those in ``model_index.json``.
        with_weights: the parts that have weights; empty: all parts with a model class.
        token_side: side in pixels of one image token of the transformer.
        layers, heads: names in the transformer's config of each stack's number of blocks, and of the number of heads.
        text: tokens of a prompt, if neither the settings nor the pipeline define them.
        tasks: its tasks, each with the class of the pipeline over the same components that does it; of a modular
            pipeline, the workflow of its blocks.
        left_out: names of blocks that are not used; components that only they need are not loaded.
        max_inputs, frame_step, fps, negative_prompt, true_cfg, cfg_calls:
            see :class:`raycache.protocol.capabilities.Capabilities`.
        fixed: constant arguments of the call.
        repeats: for several images repeat the arguments, because the pipeline's own argument for that does not work.
        image_by_row: its pipelines take an input image for each row, and encode it with noise.
        quantized: regular expressions for names of lists of blocks whose linear layers are quantized. Everything else
            is not: embedders, the modulations of the timestep, the last projection.
        kept: prefixes of the names of parts of those blocks that are not quantized either: modulations by the timestep
            have few rows, and their errors affect all tokens.
    """

    called: ClassVar[str] = "diffusers"
    transformer: ClassVar[str] = ""
    parts: ClassVar[Mapping[str, str]] = {}
    with_weights: ClassVar[Sequence[str]] = ()
    token_side: ClassVar[int] = 16
    layers: ClassVar[Sequence[str]] = ("num_layers",)
    heads: ClassVar[str] = "num_attention_heads"
    text: ClassVar[int] = 512
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": ""}
    left_out: ClassVar[Sequence[str]] = ()
    max_inputs: ClassVar[int] = 0
    frame_step: ClassVar[int] = 0
    fps: ClassVar[float] = 0.0
    negative_prompt: ClassVar[bool] = False
    true_cfg: ClassVar[bool] = False
    cfg_calls: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, Any]] = {}
    repeats: ClassVar[bool] = False
    image_by_row: ClassVar[bool] = True
    quantized: ClassVar[Sequence[str]] = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")
    kept: ClassVar[Sequence[str]] = ("norm", "img_mod", "txt_mod", "mod", "ada")

    def num_blocks(self, config: Mapping[str, Any]) -> int:
        """Transformer blocks over all stacks, from the transformer's ``config.json``.

        Raises:
            KeyError: it is not there.
        """
        return sum(int(config[name]) for name in self.layers)

    def num_heads(self, config: Mapping[str, Any]) -> int:
        """Attention heads, from the transformer's ``config.json``.

        Raises:
            KeyError: it is not there.
        """
        return int(config[self.heads])

    def guides_by_calls(self, config: Mapping[str, Any]) -> bool:
        """:attr:`cfg_calls`, if it depends on the pipeline's config."""
        return self.cfg_calls

    def side_with(self, vae: Mapping[str, Any]) -> int:
        """:attr:`token_side`, if it depends on the VAE's config."""
        return self.token_side

    def text_tokens_told(self, folder: Path) -> int:
        """:meth:`text_tokens` of the model in ``folder``, which is not loaded.

        Raises:
            OSError, ValueError, KeyError, TypeError: it cannot be read from the files.
        """
        return self.text

    def text_tokens(self, pipe: Any) -> int:
        """Tokens that every prompt is padded or truncated to, unless the settings define them."""
        return self.text

    def prompt_warnings(self, pipe: Any, prompt: str, text_tokens: int) -> list[str]:
        """Warnings about ``prompt`` for a model that reads ``text_tokens`` of it."""
        return []

    def request_warnings(self, prompt: str, size: Size, guidance_scale: float, true_cfg_scale: float) -> list[str]:
        """Other warnings about such a request; most models have none."""
        return []

    def guidance(self, guidance_scale: float, true_cfg_scale: float) -> float:
        """What the pipeline is told where these are asked for."""
        return guidance_scale

    def arguments(self, job: Job) -> Mapping[str, Any]:
        """Arguments specific to this family for the pipeline's call of ``job``; they override all others."""
        return self.fixed

    def sound(self, pipe: Any, returned: Any) -> Sound | None:
        """Sound of the first video, from what the pipeline's call ``returned``; None: the model makes none."""
        return None

    def latents_to_decode(self, pipe: Any, latents: torch.Tensor, size: Size) -> torch.Tensor | None:
        """The pipeline's latents for its VAE, [n, channels, height, width]; None: the family has no previews."""
        return None

    @property
    def previews(self) -> bool:
        """Whether :meth:`preview` is supported."""
        return type(self).latents_to_decode is not ModelFamily.latents_to_decode

    def preview(self, pipe: Any, before: torch.Tensor, after: torch.Tensor, step: int, size: Size) -> np.ndarray | None:
        """Previews at half the size: uint8 [n, height / 2, width / 2, 3]. Calls no collective.

        Args:
            pipe: the job's own view, whose scheduler is at the job's step.
            before, after: the pipeline's latents before and after ``step``, from 0.
            size: size of the full image.
        """
        from raycache.models.latents import clean, halved, pixels

        latents = self.latents_to_decode(pipe, clean(pipe.scheduler, before, after, step), size)
        return None if latents is None else pixels(pipe, halved(latents))


class VideoFamily(ModelFamily):
    """Text to video, without previews: a frame cannot be decoded without the earlier ones."""

    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": ""}
    negative_prompt = True


class OwnModel(ModelFamily, ABC):
    """A model made by this project: settings give its name instead of a folder or a hub id."""

    @abstractmethod
    def folder(self, cache: Path) -> Path:
        """The folder of the model; built in ``cache`` first if necessary.

        Raises:
            FileNotFoundError: it should exist, but does not.
        """

    @abstractmethod
    def outline(self, cache: Path) -> Path | None:
        """The folder of the model; None if it is not built yet."""


def tokens_told(folder: Path, tokenizer: str, most: int) -> int:
    """Maximum prompt length of the tokenizer in ``folder``, at most ``most`` tokens.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read from its files.
    """
    told = json.loads((folder / tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    return min(int(told["model_max_length"]), most)
