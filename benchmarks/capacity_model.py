"""How long an image takes on a gang, and how many gangs a goal needs: arithmetic with its assumptions on view.

An image's seconds on ``r`` ranks are ``serial + f (compute / r + exchange(r))``, where ``f`` is the share of blocks
computed. Ulysses exchanges queries, keys, values and the attention's output once each per block: each rank holds
``S x C x 2 / r`` bytes of each and sends ``(r - 1) / r`` of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FLUX_DEV_1024", "L20", "PUBLISHED", "Machine", "Picture", "Point", "gangs_needed", "seconds", "wait_p95"]


@dataclass(frozen=True)
class Machine:
    """One GPU and its link.

    Attributes:
        compute_s: seconds of a whole uncached image's blocks on one of them (measured or published).
        link_gb_s: GB/s that one rank really sends in an all-to-all.
        latency_s: seconds an all-to-all takes however little it carries.
    """

    compute_s: float
    link_gb_s: float
    latency_s: float = 40e-6


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes:
        tokens: of text and image together; width: channels; blocks, steps: numbers.
        serial_s: seconds that do not divide among ranks: text encoders, decoder, embedders.
    """

    tokens: int
    width: int
    blocks: int
    steps: int
    serial_s: float

    def exchanged_gb(self, ranks: int) -> float:
        """GB one rank sends over a whole uncached image in bfloat16."""
        each = self.tokens * self.width * 2 / ranks * (ranks - 1) / ranks
        return 4 * self.blocks * self.steps * each / 1e9


#: FLUX.1-dev, 1024 x 1024, 28 steps. T5 and CLIP encode in 0.2 s, the VAE decodes in 0.4 s on an L20 (estimates).
FLUX_DEV_1024 = Picture(tokens=4096 + 512, width=3072, blocks=57, steps=28, serial_s=0.6)

#: NVIDIA L20: 24.85 s an image (cache-dit's published baseline) less what is serial. PCIe 4.0 x16 carries 31.5 GB/s
#: one way; four ranks that send at once through one host reach about two thirds of it (an assumption, not a fit).
L20 = Machine(compute_s=24.85 - 0.6, link_gb_s=21.0)


@dataclass(frozen=True)
class Point:
    """A published latency. ``factor`` is what compilation and quantisation do to one GPU's compute, as published."""

    name: str
    ranks: int
    published_s: float
    factor: float = 1.0
    computed: float = 1.0


#: L20, FLUX.1-dev, 1024 x 1024, 28 steps. Factors from the one-GPU figures of the same sources: compile 20.3 / 24.85;
#: FP8 with FBCache 7.56 / 13.78; the share FBCache 0.12 computes, 13.78 / 26.36.
PUBLISHED = (
    Point("Ulysses 2", 2, 13.87),
    Point("Ulysses 2 + compile", 2, 12.21, factor=20.3 / 24.85),
    Point("Ulysses 4", 4, 8.22),
    Point("Ulysses 4 + compile", 4, 7.27, factor=20.3 / 24.85),
    Point("Ulysses 2 + compile + FP8 + FBCache 0.12", 2, 4.92, factor=7.56 / 13.78, computed=13.78 / 26.36),
    Point("Ulysses 4 + compile + FP8 + FBCache 0.12", 4, 3.90, factor=7.56 / 13.78, computed=13.78 / 26.36),
)


def seconds(picture: Picture, machine: Machine, ranks: int, *, computed: float = 1.0, factor: float = 1.0) -> float:
    """Seconds of an image on a gang of ``ranks`` with nothing waiting.

    Args:
        computed: share of blocks computed, from a report.
        factor: of one GPU's compute time, for compilation and quantisation.
    """
    exchange = 0.0
    if ranks > 1:
        calls = 4 * picture.blocks * picture.steps
        exchange = picture.exchanged_gb(ranks) / machine.link_gb_s + calls * machine.latency_s
    return picture.serial_s + computed * (factor * machine.compute_s / ranks + exchange)


def wait_p95(per_second: float, service_s: float, gangs: int) -> float:
    """Seconds that 95 % of requests wait at most, for Poisson arrivals and a service time that hardly varies.

    Erlang's C says how many wait at all. Those wait ``S / (2 c (1 - rho))`` in the mean (half as long as with service
    times that vary exponentially; exact for one gang), and an exponential tail is assumed: ``ln(20 C)`` times that
    mean, nothing where fewer than 5 % wait. Beside a simulation it is off by less than 0.3 S / c, for one gang that is
    busy a fifth of the time or more on the long side. Infinite when the gangs cannot keep up.
    """
    load = per_second * service_s / gangs
    if load >= 1:
        return math.inf
    waiting = _erlang_c(per_second * service_s, gangs)
    if waiting <= 0.05:
        return 0.0
    return math.log(20 * waiting) * service_s / (2 * gangs * (1 - load))


def _erlang_c(offered: float, gangs: int) -> float:
    """Share of requests that find every gang busy; ``offered`` is arrivals times service time, below ``gangs``."""
    lost = 1.0  # Erlang's B, gang by gang
    for k in range(1, gangs + 1):
        lost = offered * lost / (k + offered * lost)
    return lost / (1 - offered / gangs * (1 - lost))


def gangs_needed(per_minute: float, goal_s: float, service_s: float) -> int | None:
    """Gangs that answer 95 % of ``per_minute`` images within ``goal_s`` seconds; None if one image takes longer."""
    if service_s >= goal_s:
        return None
    gangs = 1
    while service_s + wait_p95(per_minute / 60, service_s, gangs) > goal_s:
        gangs += 1
    return gangs
