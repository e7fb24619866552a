"""What became of each request."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Outcome", "Record", "Recorder"]

#: done; refused (429, 503, before any work); aborted (deadline); failed (any other error); abandoned by this client;
#: wrong (an answer that is not the picture asked for).
Outcome = Literal["done", "refused", "aborted", "failed", "abandoned", "wrong"]


@dataclass
class Record:
    """One request. Times in seconds of one monotonic clock, counted from the start of the run.

    Attributes:
        kind, seed: which picture was asked for.
        intended: when it was to be sent; an open loop counts latency from here, however late the client was.
        sent, ended: when it was, and when it was answered.
        status: HTTP status; 0 when there was no answer.
        cause: the error's code, empty when done.
        images: pictures received.
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


@dataclass
class Recorder:
    """All records of a run, and the first bytes seen of each picture."""

    records: list[Record] = field(default_factory=list)
    pictures: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, record: Record) -> None:
        """A request has its end."""
        with self._lock:
            self.records.append(record)

    def same_as_before(self, kind: int, seed: int, digests: tuple[str, ...]) -> bool:
        """Whether this picture is, to the byte, what the same request gave before; True for the first."""
        with self._lock:
            return self.pictures.setdefault((kind, seed), digests) == digests

    def write(self, path: Path) -> None:
        """One JSON object a line."""
        path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in self.records))
