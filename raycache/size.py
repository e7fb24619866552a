"""The size of an image: width and height in pixels, `WIDTHxHEIGHT` as text.

Not in the protocol package, because settings also contain sizes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Size"]

#: ASCII digits, at most five a side: `\d` would match those of any alphabet.
_PATTERN = "^[0-9]{1,5}x[0-9]{1,5}$"


@dataclass(frozen=True)
class Size:
    """Any width and height, even 0: :func:`raycache.protocol.sizes.check_size` checks which can be generated.

    A field of this type in a pydantic model takes strings, and is serialized as one.
    """

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Parse ``text``.

        Raises:
            ValueError: it is not ``WIDTHxHEIGHT`` with one to five ASCII digits each.
        """
        if re.fullmatch(_PATTERN, text) is None:
            raise ValueError(f"{text[:80]!r} is not WIDTHxHEIGHT in pixels")
        width, _, height = text.partition("x")
        return cls(int(width), int(height))

    @classmethod
    def of(cls, image: np.ndarray) -> Size:
        """The size of an array [height, width, 3]."""
        return cls(image.shape[1], image.shape[0])

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    def tokens(self, side: int) -> int:
        """Whole image tokens of ``side`` times ``side`` pixels."""
        return (self.width // side) * (self.height // side)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """A string with a pattern; errors are those of such strings."""
        text = core_schema.no_info_after_validator_function(cls.parse, core_schema.str_schema(pattern=_PATTERN))
        return core_schema.no_info_before_validator_function(
            lambda given: str(given) if isinstance(given, cls) else given,
            text,
            serialization=core_schema.to_string_ser_schema(when_used="always"),
        )
