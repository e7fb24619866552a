"""A job with scripted results of comparisons, and a record of what it sent: for decisions without a fitting model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from cache_core.consensus import Consensus

#: Takes the number of the question (agreements without a comparison are not counted) and of the image.
Answer = Callable[[int, int], tuple[float, float]]


class Wire:
    """What a rank sent, agreement by agreement.

    Attributes:
        checksums: of every agreement.
        asked: which images were compared, for every agreement.
    """

    def __init__(self) -> None:
        self.checksums: list[int] = []
        self.asked: list[tuple[bool, ...]] = []


@contextmanager
def answered(answer: Answer) -> Iterator[Wire]:
    """``answer(question, image)`` gives ``(sum |now - then|, sum |then|)`` over all ranks."""
    wire = Wire()
    questions = 0

    def agree(
        self: Any, sums: Sequence[Any], abort: bool, checksum: int, device: Any, width: int = 2
    ) -> tuple[list[Any], bool]:
        nonlocal questions
        wire.checksums.append(checksum)
        wire.asked.append(tuple(pair is not None for pair in sums))
        totals = [None if pair is None else answer(questions, image) for image, pair in enumerate(sums)]
        questions += any(wire.asked[-1])
        return totals, abort

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Consensus, "agree", agree)
        yield wire


def told(*questions: str) -> Answer:
    """``told("10", "01")``: image 0 is below any threshold at the first question, image 1 at the second; after the
    last question all are."""

    def answer(question: int, image: int) -> tuple[float, float]:
        below = question >= len(questions) or questions[question][image] == "1"
        return (1e-6 if below else 1e6), 1.0

    return answer
