"""The interface of the options of every caching method."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

__all__ = ["BlockCountError", "MethodOptions", "check_ends"]


class BlockCountError(ValueError):
    """Options that do not fit the number of blocks of a model.

    Attributes:
        field: the wrong option.
        reason: what is wrong, with both numbers.
        nearest: a legal value close to the one given.
    """

    def __init__(self, field: str, reason: str, nearest: object) -> None:
        super().__init__(f"{field}: {reason}; nearest legal value: {nearest}")
        self.field, self.reason, self.nearest = field, reason, nearest


class MethodOptions(BaseModel):
    """The interface of every method's options, so that other code need not know the methods and their fields.

    Attributes:
        policy: the class that implements it, as ``module:class``; constructed from the images' options and
            the session. Policies need torch, options do not.
        thresholds: options that affect only their own image, so that images of one batch may differ in them.
        structure: options that determine which blocks run; they are the same for all images of a call.
        remembers: whether the method keeps state between blocks and between steps.
    """

    policy: ClassVar[str] = ""
    thresholds: ClassVar[frozenset[str]] = frozenset()
    structure: ClassVar[frozenset[str]] = frozenset()
    remembers: ClassVar[bool] = True

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, num_blocks: int) -> None:
        """Raise :class:`BlockCountError` if a model with ``num_blocks`` transformer blocks has too few."""

    def for_steps(self, steps: int) -> Self:
        """The options for an image of ``steps`` denoising steps, if the method must know how many there are."""
        return self

    def spelled_out(self) -> MethodOptions:
        """The options that the policy takes, if these are a shorter form of them."""
        return self

    @property
    def joins(self) -> tuple[Any, ...]:
        """What images must have in common to share a call of the transformer: the method, and which blocks run."""
        own = self.spelled_out()
        return own.policy, *(getattr(own, name) for name in sorted(own.structure))

    @property
    def computed_steps(self) -> int:
        """Number of first steps that are always computed."""
        return 0

    def known_share(self, steps: int, num_blocks: int) -> float | None:
        """The share of blocks that an image of ``steps`` steps computes; None if that depends on the image."""
        return None

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        """Reasons why these options never skip a block of an image of ``steps`` steps; usually none."""
        return []

    def why_less_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        """Reasons why these options save less than the amount that was requested, for methods that take an amount."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values, the method under ``type``."""
        return self.model_dump(mode="json")


def check_ends(first: int, last: int, num_blocks: int) -> None:
    """Check Fn and Bn against a model's number of blocks."""
    if first > num_blocks:
        raise BlockCountError("Fn_compute_blocks", f"{first} is more than the model's {num_blocks} blocks", num_blocks)
    if first + last > num_blocks:
        reason = (
            f"Fn_compute_blocks + Bn_compute_blocks = {first} + {last} = {first + last} "
            f"is more than the model's {num_blocks} blocks"
        )
        raise BlockCountError("Bn_compute_blocks", reason, num_blocks - first)
