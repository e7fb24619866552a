"""What the service asks of a model family: all that differs between FLUX and whatever else diffusers can generate with.

Imports no torch, and neither do the families until a pipeline is loaded: the builder and the engine ask them, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from raycache.size import Size

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["ModelFamily", "OwnModel"]


class ModelFamily(ABC):
    """A family without state: a pipeline is handed to each method that needs one.

    Attributes:
        transformer: class of the transformer that ``model_index.json`` must name; ``called`` is the family for people.
        parts: what the pipeline is loaded from, and the file without which a part cannot be; of a tokenizer, any.
        with_weights: those of the parts that have weights.
        token_side: pixels a side of what the transformer reads as one image token.
    """

    called: ClassVar[str]
    transformer: ClassVar[str]
    parts: ClassVar[Mapping[str, str]]
    with_weights: ClassVar[Sequence[str]]
    token_side: ClassVar[int]

    @abstractmethod
    def num_blocks(self, config: Mapping[str, Any]) -> int:
        """Transformer blocks over all stacks, as the transformer's ``config.json`` tells them.

        Raises:
            KeyError: it does not tell.
        """

    @abstractmethod
    def num_heads(self, config: Mapping[str, Any]) -> int:
        """Attention heads, as the transformer's ``config.json`` tells them.

        Raises:
            KeyError: it does not tell.
        """

    @abstractmethod
    def text_tokens_told(self, folder: Path) -> int:
        """:meth:`text_tokens` of the model in ``folder``, which is not loaded.

        Raises:
            OSError, ValueError, KeyError, TypeError: the files do not tell.
        """

    @abstractmethod
    def load(self, folder: str, dtype: torch.dtype) -> Any:
        """The pipeline in ``folder``, on the CPU."""

    @abstractmethod
    def text_tokens(self, pipe: Any) -> int:
        """Tokens to which every prompt is padded or cut off where the settings name no number."""

    @abstractmethod
    def prompt_warnings(self, pipe: Any, prompt: str, text_tokens: int) -> list[str]:
        """What is odd about ``prompt`` for a model that reads ``text_tokens`` of it."""

    def request_warnings(self, prompt: str, size: Size) -> list[str]:
        """What to tell of a request for ``size`` besides; most models have nothing to say."""
        return []

    @abstractmethod
    def encode(
        self, pipe: Any, prompts: Sequence[str], rows: Sequence[int], device: torch.device, text_tokens: int
    ) -> dict[str, Any]:
        """Arguments of the pipeline's call that stand for the prompts.

        Args:
            prompts: different ones, each encoded once.
            rows: for each image, which of the prompts it has.
            text_tokens: of each prompt.
        """

    @abstractmethod
    def noise(
        self, pipe: Any, encoded: Mapping[str, Any], generators: Sequence[torch.Generator], height: int, width: int
    ) -> torch.Tensor:
        """Latents to begin with, as the pipeline takes them, on the device of what :meth:`encode` gave.

        Args:
            generators: one for each image; its noise depends on nothing else.
            height, width: pixels.
        """

    @abstractmethod
    def decode(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> np.ndarray:
        """Images of the latents that the pipeline's call gave: uint8 [n, height, width, 3]. Calls no collective."""

    @abstractmethod
    def preview(
        self, pipe: Any, before: torch.Tensor, after: torch.Tensor, step: int, height: int, width: int
    ) -> np.ndarray:
        """Smaller images of what the latents are becoming: uint8 [n, height / 2, width / 2, 3]. Calls no collective.

        Args:
            before, after: the pipeline's latents around ``step``, from 0.
            height, width: pixels of the whole image.
        """


class OwnModel(ModelFamily):
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
