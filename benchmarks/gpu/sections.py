"""The sections of the report, in the order in which they run: the most informative for their time come first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SECTIONS", "Section"]


@dataclass(frozen=True)
class Section:
    """One section, which is one process.

    Attributes:
        name: on the command line; title: in the report.
        entry: import path of its function ``(plan, facts, recorder)``.
        limit_s, quick_s: seconds after which it is ended, without and with ``--quick``.
        needs: ``model``: memory for the transformer; ``ranks``: two GPUs or more.
    """

    name: str
    title: str
    entry: str
    limit_s: float
    quick_s: float
    needs: tuple[Literal["model", "ranks"], ...] = ()


_ALL = (
    Section("tests", "Tests on a GPU", "gpu_tests:measure", 900, 120),
    Section("images", "Images on one GPU", "images:measure", 3600, 240, ("model",)),
    Section("ranks", "Images over ranks", "ranks:measure", 5400, 180, ("model", "ranks")),
    Section("efficiency", "Efficiency of the caches", "efficiency:measure", 1200, 100, ("model",)),
    Section("decisions", "Cost of a decision", "decisions:measure", 300, 60),
    Section("decoding", "Decoding", "decoding:measure", 600, 60),
    Section("links", "Messages between ranks", "links:measure", 600, 60, ("ranks",)),
    Section("rebuild", "Rebuild of a gang", "rebuild:measure", 1800, 120),
)
#: The sections by name.
SECTIONS = {section.name: section for section in _ALL}
