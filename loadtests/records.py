"""The outcome of each request."""

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
#: wrong (an answer that is not the requested image).
Outcome = Literal["done", "refused", "aborted", "failed", "abandoned", "wrong"]

#: Images are compared by means over a grid of this many fields per side; rounding changes a mean by less than this.
_SIDE, _ROUNDING = 16, 3


@dataclass
class Record:
    """One request. Times in seconds of one monotonic clock, counted from the start of the run.

    Attributes:
        kind, seed: which image was requested.
        intended: when it should be sent; an open loop counts latency from here, however late the client was.
        sent, ended: when it was sent, and when it was answered.
        status: HTTP status; 0 if there was no answer.
        cause: the error's code; empty if done.
        images: images received.
        queue, encode, denoise, decode: the server's own times.
        first_event, first_preview: seconds after ``sent``, for a stream.
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
    """All records of a run, and a small copy of each image when it was first received."""

    records: list[Record] = field(default_factory=list)
    _seen: dict[tuple[int, int], _Seen] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, record: Record) -> None:
        """Add a request that has ended."""
        with self._lock:
            self.records.append(record)

    def same_as_before(self, kind: int, seed: int, images: Sequence[bytes]) -> bool:
        """Whether these are the images that the same request returned before; True for the first.

        Differences by rounding are allowed: the jobs that share its transformer calls vary.

        Raises:
            OSError: they are not images.
        """
        digests = tuple(hashlib.sha256(image).hexdigest() for image in images)
        with self._lock:
            before = self._seen.get((kind, seed))
        if before is not None and before.digests == digests:
            return True
        small = np.stack([_small(image) for image in images])
        with self._lock:
            before = self._seen.setdefault((kind, seed), _Seen(digests, small))
        return before.small.shape == small.shape and bool(np.abs(before.small - small).max() <= _ROUNDING)

    def write(self, path: Path) -> None:
        """Write one JSON object per line."""
        path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in self.records))


def _small(data: bytes) -> np.ndarray:
    """Means over a grid, int16 [side, side, 3]: a different image changes some of them, rounding none by much."""
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(image, np.int16)
