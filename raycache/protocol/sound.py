"""Sound that a model generates with its frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Sound"]


@dataclass(frozen=True)
class Sound:
    """The sound of one video, as long as its frames.

    Attributes:
        samples: float32 [samples, channels], from -1 to 1.
        rate: samples a second.
    """

    samples: np.ndarray = field(repr=False)
    rate: int
