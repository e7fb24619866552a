"""What became of each request."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

__all__ = ["Outcome", "Record", "Recorder"]

#: done; refused (429, 503, before any work); aborted (deadline); failed (any other error); abandoned by this client;
#: wrong (an answer that is not the image asked for).
Outcome = Literal["done", "refused", "aborted", "failed", "abandoned", "wrong"]

#: Images are compared by the means over so many by so many fields, which rounding changes by less than this.
_SIDE, _ROUNDING = 16, 3


@dataclass
class Record:
    """One request. Times in seconds of one monotonic clock, counted from the start of the run.

    Attributes:
        kind, seed: which image was asked for.
        intended: when it was to be sent; an open loop counts latency from here, however late the client was.
        sent, ended: when it was, and when it was answered.
        status: HTTP status; 0 when there was no answer.
        cause: the error's code, empty when done.
        images: images received.
        queue, encode, denoise, decode: the server's own times.
        first_event, first_preview: of a stream, after ``sent``.
        computed: mean share of blocks computed; None without a report.
    """

    kind: int
    seed: int
    intended: float
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    outcome: Outcome = "failed"
    cause: str = ""
    images: int = 0
    queue: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    first_event: float | None = None
    first_preview: float | None = None
    computed: float | None = None
    streamed: bool = False
    checked: bool = False

    @property
    def latency(self) -> float:
        """Seconds from the intended start to the answer."""
        return self.ended - self.intended


class _Seen(NamedTuple):
    digests: tuple[str, ...]
    small: np.ndarray


@dataclass
class Recorder:
    """All records of a run, and what each image looked like when it was first seen."""

    records: list[Record] = field(default_factory=list)
    _seen: dict[tuple[int, int], _Seen] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, record: Record) -> None:
        """A request has its end."""
        with self._lock:
            self.records.append(record)

    def same_as_before(self, kind: int, seed: int, pictures: Sequence[bytes]) -> bool:
        """Whether these are the images that the same request gave before; True for the first.

        But for rounding: whoever shared their transformer calls then shares them no more.

        Raises:
            OSError: they are no images.
        """
        digests = tuple(hashlib.sha256(picture).hexdigest() for picture in pictures)
        with self._lock:
            before = self._seen.get((kind, seed))
        if before is not None and before.digests == digests:
            return True
        small = np.stack([_small(picture) for picture in pictures])
        with self._lock:
            before = self._seen.setdefault((kind, seed), _Seen(digests, small))
        return before.small.shape == small.shape and bool(np.abs(before.small - small).max() <= _ROUNDING)

    def write(self, path: Path) -> None:
        """One JSON object a line."""
        path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in self.records))


def _small(picture: bytes) -> np.ndarray:
    """Means over a grid, int16 [side, side, 3]: another image differs in some, rounding in none by much."""
    image = Image.open(io.BytesIO(picture)).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(image, np.int16)
