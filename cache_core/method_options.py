"""The interface of the options of every caching method."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

__all__ = ["BlockCountError", "MethodOptions", "check_ends"]


class BlockCountError(ValueError):
    """Options that do not fit the number of blocks of a model.

    Attributes:
        field: the option at fault.
        reason: what is wrong, with both numbers.
        nearest: a legal value close to the one given.
    """

    def __init__(self, field: str, reason: str, nearest: object) -> None:
        super().__init__(f"{field}: {reason}; nearest legal value: {nearest}")
        self.field, self.reason, self.nearest = field, reason, nearest


class MethodOptions(BaseModel):
    """What is asked of every method, so that nobody else need know which there are, and which fields one has.

    Attributes:
        policy: what carries it out, as ``module:class``; made from the images' options and the session. Policies need
            torch, options do not.
        thresholds: options that decide over their own image only, so that images of one batch may differ in them.
        structure: options that say which blocks run; images that share a call have the same.
        remembers: it keeps something from block to block, and from step to step.
    """

    policy: ClassVar[str] = ""
    thresholds: ClassVar[frozenset[str]] = frozenset()
    structure: ClassVar[frozenset[str]] = frozenset()
    remembers: ClassVar[bool] = True

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, num_blocks: int) -> None:
        """Raise :class:`BlockCountError` where a model of so many transformer blocks has too few."""

    def spelled_out(self) -> MethodOptions:
        """The options that the policy takes, where this is a shorter way to say them."""
        return self

    @property
    def joins(self) -> tuple[Any, ...]:
        """What images must have in common to share a call of the transformer: the method, and which blocks run."""
        own = self.spelled_out()
        return own.policy, *(getattr(own, name) for name in sorted(own.structure))

    @property
    def computed_steps(self) -> int:
        """How many first steps of an image are computed whatever it looks like."""
        return 0

    def known_share(self, steps: int, num_blocks: int) -> float | None:
        """The share of blocks that an image of ``steps`` steps computes; None where the image decides."""
        return None

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        """The options by which no block of an image of ``steps`` steps is ever left out; most often none."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values, the method under ``type``."""
        return self.model_dump(mode="json")


def check_ends(first: int, last: int, num_blocks: int) -> None:
    """Fn and Bn against a model's blocks."""
    if first > num_blocks:
        raise BlockCountError("Fn_compute_blocks", f"{first} is more than the model's {num_blocks} blocks", num_blocks)
    if first + last > num_blocks:
        reason = (
            f"Fn_compute_blocks + Bn_compute_blocks = {first} + {last} = {first + last} "
            f"is more than the model's {num_blocks} blocks"
        )
        raise BlockCountError("Bn_compute_blocks", reason, num_blocks - first)
