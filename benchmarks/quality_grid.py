"""``python -m benchmarks.quality_grid``: a grid of images by preset, with the seconds under each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageFont

from benchmarks.places import doc_option, place
from cache_core import cache_session
from cache_core.options import CacheOptions
from raycache.demo import demo_model_path
from raycache.demo.evaluate import load
from raycache.models.generating import generate_images
from raycache.presets import PRESET_NAMES, PresetName, load_presets
from raycache.size import Size
from raycache.tune.measures import psnr
from raycache.tune.sweep import clock_of

PROMPTS = (
    "a large red circle left of a small blue star on a gray background",
    "a large yellow star above a small purple square on a black background",
    "a small green ring below a large orange triangle on a white background",
    "a large cyan cross right of a large pink circle on a brown background",
)
SIDE, GAP, LINE = 128, 8, 15

_Made = tuple[np.ndarray, float, float]


def main(
    doc: bool = doc_option(),
    seed: Annotated[int, typer.Option(help="Seed of every image.")] = 7,
    threads: Annotated[int, typer.Option(help="CPU threads; seconds are wall time with all of them.")] = 1,
) -> None:
    """Generate four captions with every preset and paste the images into one."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    pipe = load(str(demo_model_path()))
    presets = load_presets("demo").presets
    timed(pipe, PROMPTS[0], presets["exact"], 0)  # the first image includes allocation
    names = [name for name in PRESET_NAMES if name in presets]
    made = {name: [timed(pipe, prompt, presets[name], seed) for prompt in PROMPTS] for name in names}
    grid = compose(names, made)
    grid.save(place("images/quality_presets.png", doc), optimize=True)


def timed(pipe: Any, prompt: str, options: CacheOptions, seed: int) -> _Made:
    """One image, its seconds, and the share of blocks computed."""
    clock = clock_of(pipe)
    started = clock()
    with cache_session(pipe.transformer, options) as report:
        (image,) = generate_images(pipe, [prompt], [seed], steps=28, size=Size(SIDE, SIDE))
    return image, clock() - started, report.computed_block_fraction[0]


def compose(names: Sequence[PresetName], made: Mapping[PresetName, list[_Made]]) -> Image.Image:
    """Presets in columns, captions in rows, seconds and PSNR to ``exact`` under each image."""
    left, top = 150, 24
    size = (left + len(names) * (SIDE + GAP), top + len(PROMPTS) * (SIDE + 2 * LINE + GAP))
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    font = ImageFont.load_default(12)
    for row, prompt in enumerate(PROMPTS):
        y = top + row * (SIDE + 2 * LINE + GAP)
        pen.multiline_text((4, y + 20), wrapped(prompt), fill="black", font=font)
        for column, name in enumerate(names):
            x = left + column * (SIDE + GAP)
            image, seconds, share = made[name][row]
            if row == 0:
                pen.text((x, 4), name, fill="black", font=font)
            grid.paste(Image.fromarray(image), (x, y))
            pen.text((x, y + SIDE), f"{seconds:.2f} s, {share:.0%} of blocks", fill="black", font=font)
            if name != "exact":
                exact = made["exact"][row][0]
                decibel = psnr(image[None], exact[None])[0]
                pen.text((x, y + SIDE + LINE), f"{decibel:.1f} dB", fill="black", font=font)
    return grid


def wrapped(prompt: str, width: int = 22) -> str:
    """``prompt`` in lines of at most ``width`` letters."""
    lines = [""]
    for word in prompt.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
