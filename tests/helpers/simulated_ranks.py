"""How long ranks take, from a model of the hardware: launches, rooflines, tiles, noise. Independent of
`raycache.gang.costs`.

Times are not sums of the terms that the service fits: matrix products wait for weights when there are few tokens, work
comes in tiles, each job has its own random factor, and occasionally one is disturbed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from raycache.protocol.job import JobOutput


@dataclass(frozen=True)
class Machine:
    """One gang: ``flops`` and ``bytes_s`` of all ranks together, ``launch_s`` per block, and the model's shape."""

    flops: float
    bytes_s: float
    launch_s: float
    step_s: float
    hidden: int
    blocks: int
    text: int
    encode_s: float
    decode_flops: float
    decode_launch_s: float


#: FLUX.1-dev on four L20; the tiny model of the tests on two CPU cores; a middling model on one core.
MACHINES = {
    "four GPUs": Machine(4 * 7e13, 4 * 8e11, 6e-4, 4e-3, 3072, 57, 512, 0.12, 1.2e14, 0.02),
    "a tiny model": Machine(3e10, 2e10, 2e-3, 4e-3, 64, 6, 64, 0.02, 4e11, 0.01),
    "a CPU": Machine(6e10, 2e10, 8e-4, 2e-3, 512, 20, 64, 0.15, 1e12, 0.05),
}


class Ranks:
    """Generates nothing, and reports how long it would have taken."""

    def __init__(self, machine: Machine, seed: int = 0, noise: float = 0.04, disturbed: float = 0.02) -> None:
        self._machine, self._luck = machine, random.Random(seed)
        self._noise, self._disturbed = noise, disturbed

    def step_s(self, side: tuple[int, int], images: int, blocks: float) -> float:
        """One step in which ``blocks`` blocks are computed."""
        m = self._machine
        tokens = side[0] * side[1] // 256 + m.text
        rows = math.ceil(images * tokens / 128) * 128
        weights = 12 * m.hidden**2
        matrix = max(2 * rows * weights / m.flops, 2 * weights / m.bytes_s)
        attention = images * 4 * tokens**2 * m.hidden / (0.5 * m.flops)
        return m.step_s + blocks * (m.launch_s + matrix + attention)

    def decode_s(self, side: tuple[int, int], images: int) -> float:
        m = self._machine
        pixels = images * side[0] * side[1]
        attention = images * 4 * 512 * (side[0] * side[1] / 64) ** 2
        return m.decode_launch_s + (1.1e6 * pixels + attention) / m.decode_flops

    def computed(self, options: object, steps: int) -> list[float]:
        """Blocks computed in each step: differences shrink towards the middle of a job and grow towards its end."""
        m, threshold = self._machine, getattr(options, "residual_diff_threshold", 0.0)
        always = getattr(options, "Fn_compute_blocks", 1) + getattr(options, "Bn_compute_blocks", 0)
        left = getattr(options, "max_cached_steps", 0)
        told = []
        for step in range(steps):
            at = (step + 1) / steps
            difference = (0.05 + 0.3 * (at - 0.6) ** 2) * (28 / steps) ** 0.7 * self._luck.lognormvariate(0, 0.25)
            cached = step >= getattr(options, "warmup_steps", 0) and difference < threshold and left != 0
            left -= cached
            told.append(float(always if cached else m.blocks))
        return told

    def draw(self, side: tuple[int, int], images: int, steps: int, options: object, cold: bool = False) -> JobOutput:
        """The times of one job; ``cold``: the first of all, in which everything is slower, most the first step."""
        computed, slow = self.computed(options, steps), 1.4 if cold else 1.0
        each = [slow * self.step_s(side, images, blocks) for blocks in computed]
        stall = 8 * each[0] + 0.5 if cold else 0.0
        luck = self._luck.lognormvariate(0, self._noise) * (3 if self._luck.random() < self._disturbed else 1)
        totals = {"computed_block_fraction": [sum(computed) / len(computed) / self._machine.blocks] * images}
        return JobOutput(
            np.zeros((images, 1, 1, 3), np.uint8),
            None if getattr(options, "type", "none") == "none" else {"totals": totals},
            encode_s=slow * luck * self._machine.encode_s,
            denoise_s=luck * (sum(each) + stall),
            decode_s=slow * luck * self.decode_s(side, images),
            stalls_s=luck * stall,
        )

    def true_s(self, side: tuple[int, int], images: int, steps: int, options: object) -> float:
        """Seconds of such a job without noise: the median of many."""
        many = [sum(self.computed(options, steps)) / steps for _ in range(40)]
        each = self.step_s(side, images, sorted(many)[20])
        return self._machine.encode_s + steps * each + self.decode_s(side, images)
