"""The interface of a model family: all that differs between FLUX and the other models of diffusers.

Most of it is data. A pipeline brings its own encoding and its own tail, and takes arguments by name
(:mod:`raycache.models.arguments`); a family says what a request may ask of it, and what cannot be read from the files.
Imports no torch, and neither do the families until a pipeline is loaded: the builder and the engine ask them, too.
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
    """A family without state: a pipeline is handed to each method that needs one.

    Attributes:
        called: the family for people; transformer: class that ``model_index.json`` must name, empty for any.
        parts: what the pipeline is loaded from, and the file without which a part cannot be; of a tokenizer, any.
            Empty: what ``model_index.json`` names.
        with_weights: those of the parts that have weights; empty: all that are models by their class.
        token_side: pixels a side of what the transformer reads as one image token.
        layers, heads: names in the transformer's config of the numbers of blocks of each stack, and of attention heads.
        text: tokens of a prompt, where neither settings nor the pipeline name a number.
        tasks: what it can do, and the class of pipeline over the same components that does it; of a modular pipeline,
            the workflow of its blocks.
        left_out: names of those blocks that are not used, nor what they need loaded.
        max_inputs, frame_step, fps, negative_prompt, true_cfg, cfg_calls:
            see :class:`raycache.protocol.capabilities.Capabilities`.
        fixed: arguments of the call that no request chooses.
        repeats: for several images arguments are repeated, where the pipeline's own number of images does not work.
        picture_by_row: its pipelines take a picture for each row, and encode it with noise.
        quantized: regular expressions of the names of lists of blocks whose linear layers are quantized. All else is
            left out: embedders, what makes modulations of the timestep, the last projection.
        kept: beginnings of names of parts of those blocks that are left out, too: modulations by the timestep are few
            rows, and errors of theirs change all tokens.
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
    picture_by_row: ClassVar[bool] = True
    quantized: ClassVar[Sequence[str]] = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")
    kept: ClassVar[Sequence[str]] = ("norm", "img_mod", "txt_mod", "mod", "ada")

    def num_blocks(self, config: Mapping[str, Any]) -> int:
        """Transformer blocks over all stacks, as the transformer's ``config.json`` tells them.

        Raises:
            KeyError: it does not tell.
        """
        return sum(int(config[name]) for name in self.layers)

    def num_heads(self, config: Mapping[str, Any]) -> int:
        """Attention heads, as the transformer's ``config.json`` tells them.

        Raises:
            KeyError: it does not tell.
        """
        return int(config[self.heads])

    def guides_by_calls(self, config: Mapping[str, Any]) -> bool:
        """:attr:`cfg_calls`, where it depends on the pipeline's config."""
        return self.cfg_calls

    def side_with(self, vae: Mapping[str, Any]) -> int:
        """:attr:`token_side`, where it depends on the VAE's config."""
        return self.token_side

    def text_tokens_told(self, folder: Path) -> int:
        """:meth:`text_tokens` of the model in ``folder``, which is not loaded.

        Raises:
            OSError, ValueError, KeyError, TypeError: the files do not tell.
        """
        return self.text

    def text_tokens(self, pipe: Any) -> int:
        """Tokens to which every prompt is padded or cut off where the settings name no number."""
        return self.text

    def prompt_warnings(self, pipe: Any, prompt: str, text_tokens: int) -> list[str]:
        """What is odd about ``prompt`` for a model that reads ``text_tokens`` of it."""
        return []

    def request_warnings(self, prompt: str, size: Size) -> list[str]:
        """What to tell of a request for ``size`` besides; most models have nothing to say."""
        return []

    def arguments(self, job: Job) -> Mapping[str, Any]:
        """Arguments of the pipeline's call that are this family's own, for ``job``; they go before all others."""
        return self.fixed

    def sound(self, pipe: Any, returned: Any) -> Sound | None:
        """Of the first image, from all that the pipeline's call ``returned``; None: it makes none."""
        return None

    def latents_to_decode(self, pipe: Any, latents: torch.Tensor, size: Size) -> torch.Tensor | None:
        """The pipeline's latents as its VAE takes them, [n, channels, height, width]; None: it makes no previews."""
        return None

    @property
    def previews(self) -> bool:
        """Whether :meth:`preview` makes any."""
        return type(self).latents_to_decode is not ModelFamily.latents_to_decode

    def preview(self, pipe: Any, before: torch.Tensor, after: torch.Tensor, step: int, size: Size) -> np.ndarray | None:
        """Smaller images of what the latents are becoming: uint8 [n, height / 2, width / 2, 3]. Calls no collective.

        Args:
            pipe: the job's own view, whose scheduler is where the job is.
            before, after: the pipeline's latents around ``step``, from 0.
            size: of the whole image.
        """
        from raycache.models.latents import clean, halved, pixels

        latents = self.latents_to_decode(pipe, clean(pipe.scheduler, before, after, step), size)
        return None if latents is None else pixels(pipe, halved(latents))


class VideoFamily(ModelFamily):
    """Text to video, and no previews: a frame cannot be decoded without those before it."""

    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": ""}
    negative_prompt = True


class OwnModel(ModelFamily, ABC):
    """A model that this project makes: settings name it by one word instead of a folder or a hub id."""

    @abstractmethod
    def folder(self, cache: Path) -> Path:
        """Where the model is; built in ``cache`` first if need be.

        Raises:
            FileNotFoundError: it should be there and is not.
        """

    @abstractmethod
    def outline(self, cache: Path) -> Path | None:
        """Where the model is; None while it is not built."""


def tokens_told(folder: Path, tokenizer: str, most: int) -> int:
    """How long a prompt the tokenizer in ``folder`` takes, at most ``most`` tokens.

    Raises:
        OSError, ValueError, KeyError, TypeError: its files do not tell.
    """
    told = json.loads((folder / tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    return min(int(told["model_max_length"]), most)
