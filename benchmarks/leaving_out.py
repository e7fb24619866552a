"""A cache's simplest rival: the same blocks left out in every step, and which ones are missed least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.quality_table import STEPS
from cache_core.blocks import find_blocks
from cache_core.options import NoCacheOptions
from raycache.demo.evaluate import held_out_scenes
from raycache.size import Size
from raycache.tune.measures import psnr
from raycache.tune.sweep import Job, draw

__all__ = ["best_left_out", "captions_to_choose_by", "left_out", "residual_shares", "without"]


def captions_to_choose_by(prompts: int) -> Job:
    """Captions on which blocks are chosen; other tables measure on others."""
    scenes = held_out_scenes(prompts, seed=4)
    return Job(tuple(scene.caption for scene in scenes), STEPS, Size(128, 128), prompts)


@contextmanager
def left_out(transformer: Any, indices: Sequence[int]) -> Iterator[None]:
    """Make these blocks return their input."""
    blocks = [find_blocks(transformer)[index].module for index in indices]
    for block in blocks:
        block.forward = lambda hidden_states, encoder_hidden_states, **_: (encoder_hidden_states, hidden_states)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def without(pipe: Any, job: Job, references: np.ndarray, indices: Sequence[int]) -> float:
    """Mean PSNR in dB of the images that are generated without these blocks."""
    with left_out(pipe.transformer, indices):
        return float(psnr(draw(pipe, job, NoCacheOptions())[0], references).mean())


def best_left_out(pipe: Any, job: Job, references: np.ndarray, count: int) -> Iterator[tuple[list[int], float]]:
    """The ``count`` blocks that are missed least, chosen one after another.

    Yields:
        (blocks left out so far in the order of choice, mean PSNR in dB without them), for 1 to ``count`` of them.
    """
    chosen: list[int] = []
    left = {block.index for block in find_blocks(pipe.transformer)}
    for _ in range(count):
        reached = {index: without(pipe, job, references, [*chosen, index]) for index in sorted(left)}
        best = max(reached, key=reached.__getitem__)
        chosen.append(best)
        left.remove(best)
        yield list(chosen), reached[best]


def residual_shares(pipe: Any, job: Job) -> list[float]:
    """For each block, its share of what all blocks add to the image tokens; the shares add up to 1."""
    blocks = find_blocks(pipe.transformer)
    norms: list[list[float]] = [[] for _ in blocks]
    handles = []
    for block in blocks:

        def note(_module: Any, args: Any, kwargs: Any, output: Any, index: int = block.index) -> None:
            before = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            norms[index].append(float((output[1] - before).float().norm()))

        handles.append(block.module.register_forward_hook(note, with_kwargs=True))
    try:
        draw(pipe, job, NoCacheOptions())
    finally:
        for handle in handles:
            handle.remove()
    each_step = np.array(norms)
    return [float(share) for share in (each_step / each_step.sum(axis=0)).mean(axis=1)]
