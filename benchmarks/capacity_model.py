"""How long an image takes on a gang: arithmetic with explicit assumptions.

An image's seconds on ``r`` ranks are ``serial + f (compute / r + exchange(r)) + decisions``, where ``f`` is the share
of blocks that is computed. Ulysses exchanges queries, keys, values and the attention's output once each per block:
each rank holds ``S x C x 2 / r`` bytes of each and sends ``(r - 1) / r`` of it. Others send each separately; ours sends
two messages per block, because query, key and value share one (`raycache.worker.fused_ulysses`).

Two constants are fitted, by `fit`, on the rows of `benchmarks.published` marked as such; the others are held back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.published import ROWS, Row

__all__ = ["FLUX_DEV_1024", "L20", "OURS", "THEIRS", "Image", "Machine", "errors", "fit", "predicted", "seconds"]

#: All-to-alls per block: in diffusers' and ParaAttention's Ulysses attention, and in ours.
THEIRS, OURS = 4, 2


@dataclass(frozen=True)
class Machine:
    """One GPU and its link.

    Attributes:
        compute_s: seconds of a whole uncached image's blocks on one GPU (measured or published).
        link_gb_s: the most that one rank can send, GB/s.
        call_s: seconds that a collective takes however small it is.
    """

    compute_s: float
    link_gb_s: float
    call_s: float


@dataclass(frozen=True)
class Image:
    """The model and the image that is generated.

    Attributes:
        tokens: of text and image together; width: channels; blocks, steps: their numbers.
        serial_s: seconds that neither ranks nor caches reduce: encoders, decoder, embedders, Python around steps.
    """

    tokens: int
    width: int
    blocks: int
    steps: int
    serial_s: float

    def exchanged_gb(self, ranks: int) -> float:
        """GB that one rank sends for a whole uncached image in bfloat16."""
        each = self.tokens * self.width * 2 / ranks * (ranks - 1) / ranks
        return 4 * self.blocks * self.steps * each / 1e9


#: FLUX.1-dev, 1024 x 1024, 28 steps. ``serial_s`` is fitted.
FLUX_DEV_1024 = Image(tokens=4096 + 512, width=3072, blocks=57, steps=28, serial_s=1.40)

#: NVIDIA L20: 24.85 s per image (cache-dit 0.2.2) minus the serial part. The link is PCIe 4.0 x16 in one direction, not
#: fitted. ``call_s`` is fitted.
L20 = Machine(compute_s=24.85 - FLUX_DEV_1024.serial_s, link_gb_s=31.5, call_s=41e-6)


def seconds(
    image: Image,
    machine: Machine,
    ranks: int,
    *,
    computed: float = 1.0,
    factor: float = 1.0,
    messages: int = OURS,
    message: float = 1.0,
    decisions: int = 0,
) -> float:
    """Seconds of an image on a gang of ``ranks`` with no other job waiting.

    Args:
        computed: share of blocks computed, from a report.
        factor: on one GPU's compute time, for compilation and quantization.
        messages: all-to-alls per block; message: their bytes relative to bfloat16.
        decisions: collectives for cache decisions in the whole image.
    """
    exchange = agreement = 0.0
    if ranks > 1:
        calls = messages * image.blocks * image.steps
        exchange = message * image.exchanged_gb(ranks) / machine.link_gb_s + calls * machine.call_s
        agreement = decisions * machine.call_s
    return image.serial_s + computed * (factor * machine.compute_s / ranks + exchange) + agreement


def predicted(row: Row, image: Image = FLUX_DEV_1024, machine: Machine = L20) -> float:
    """The model's seconds for a source's setting, from that source's own figures for one GPU.

    Raises:
        ValueError: the row has neither an uncached figure for one GPU nor a cached one with its share.
    """
    serial = image.serial_s
    if row.share is not None:
        share = row.share
    elif row.alone_s is not None and row.cached_alone_s is not None:
        share = (row.cached_alone_s - serial) / (row.alone_s - serial)
    else:
        raise ValueError(f"{row.what}: the share of blocks computed, or both figures of one GPU, must be known")
    if row.cached_alone_s is not None:
        compute_s = (row.cached_alone_s - serial) / share
    elif row.alone_s is not None:
        compute_s = row.alone_s - serial
    else:
        raise ValueError(f"{row.what}: a figure of one GPU must be known")
    return seconds(
        replace(image, tokens=row.tokens),
        replace(machine, compute_s=compute_s),
        row.ranks,
        computed=share,
        messages=THEIRS,
        message=row.message,
        decisions=row.decisions,
    )


def errors(rows: Sequence[Row], image: Image = FLUX_DEV_1024, machine: Machine = L20) -> list[float]:
    """Predicted divided by published, minus one, for each row."""
    return [predicted(row, image, machine) / row.published_s - 1 for row in rows]


def fit(rows: Sequence[Row] | None = None) -> tuple[float, float]:
    """``serial_s`` and ``call_s`` with the least squared relative errors; neither may be negative.

    Args:
        rows: the rows to fit on; default: those marked as fitted.
    """
    from scipy.optimize import least_squares

    fitted = [row for row in ROWS if row.fitted] if rows is None else rows

    def of(constants: Sequence[float]) -> list[float]:
        image = replace(FLUX_DEV_1024, serial_s=constants[0])
        return errors(fitted, image, replace(L20, call_s=constants[1] / 1e6))

    serial_s, call_us = least_squares(of, [1.0, 50.0], bounds=([0, 0], [5, 1000]), x_scale=[1.0, 50.0]).x
    return float(serial_s), float(call_us) / 1e6
