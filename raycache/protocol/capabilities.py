"""What is known of a model: where it is, what it is, and what can be asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Capabilities", "ModelKind", "ModelSource"]

ModelKind = Literal["noise", "demo", "folder", "hub"]
#: A local folder in diffusers' layout, and what it is.
ModelSource = tuple[str, ModelKind]


@dataclass(frozen=True)
class Capabilities:
    """What validation must know of a model: the ranks tell it of the one that they loaded, and a folder of its own.

    Attributes:
        kind: ``noise`` (random weights), ``demo`` (bundled), ``folder`` or ``hub``.
        num_blocks: transformer blocks over all stacks.
        num_heads: attention heads.
        text_tokens: tokens every prompt is padded to.
        pipeline: class name of the pipeline.
        token_side: pixels a side of what the transformer reads as one image token.
    """

    kind: ModelKind
    num_blocks: int
    num_heads: int
    text_tokens: int
    pipeline: str
    token_side: int
