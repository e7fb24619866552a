"""``python -m raycache.demo.evaluate``: how often the model draws what a held-out caption says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from raycache.demo import demo_model_path
from raycache.demo.judge import Verdict, judge, shares
from raycache.demo.world import Scene, random_scene

if TYPE_CHECKING:
    from diffusers import FluxPipeline


def held_out_scenes(count: int, seed: int = 1) -> list[Scene]:
    """``count`` different scenes whose captions training never saw."""
    rng = np.random.default_rng(seed)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = random_scene(rng, held_out=True)
        scenes[scene.caption] = scene
    return list(scenes.values())


def load(folder: str, dtype: torch.dtype = torch.float32) -> FluxPipeline:
    """The pipeline in ``folder``, silent."""
    from diffusers import FluxPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(
    pipe: FluxPipeline, prompts: list[str], seeds: list[int], *, steps: int = 28, width: int = 128, height: int = 128
) -> np.ndarray:
    """Pictures of ``prompts``, each from its own seed, in one batch: uint8 ``[prompts, height, width, 3]``."""
    pictures = pipe(
        prompts,
        width=width,
        height=height,
        num_inference_steps=steps,
        max_sequence_length=pipe.tokenizer_2.model_max_length,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    return (pictures * 255).round().astype(np.uint8)


def verdicts(
    pipe: FluxPipeline, scenes: list[Scene], *, steps: int = 28, batch: int = 25, width: int = 128, height: int = 128
) -> Iterator[list[Verdict]]:
    """Draw ``scenes`` from seeds 0, 1, ... and judge them, a batch at a time."""
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        seeds = list(range(start, start + len(part)))
        pictures = draw(pipe, [scene.caption for scene in part], seeds, steps=steps, width=width, height=height)
        yield [judge(scene, picture) for scene, picture in zip(part, pictures, strict=True)]


def main(
    model: Annotated[str, typer.Option(help="Folder of a model of the drawn world, or `demo`.")] = "demo",
    captions: Annotated[int, typer.Option(help="Held-out captions to draw.")] = 500,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 28,
    batch: Annotated[int, typer.Option(help="Pictures drawn at a time.")] = 25,
    width: Annotated[int, typer.Option(help="Pixels.")] = 128,
    height: Annotated[int, typer.Option(help="Pixels.")] = 128,
) -> None:
    """Draw held-out captions without any cache and tell the shares that a judge reads as asked."""
    pipe = load(str(demo_model_path()) if model == "demo" else model)
    console = Console(stderr=True)
    started = time.perf_counter()
    read: list[Verdict] = []
    parts = verdicts(pipe, held_out_scenes(captions), steps=steps, batch=batch, width=width, height=height)
    for part in track(parts, total=-(-captions // batch), description="drawing", console=console):
        read += part
    table = Table(
        "part of the caption", "as asked", title=f"{captions} held-out captions, {steps} steps, {width}x{height}"
    )
    for name, share in shares(read).items():
        table.add_row(name.replace("_", " "), f"{share:.1%}")
    Console().print(table)
    console.print(f"{(time.perf_counter() - started) / captions:.2f} s a picture, drawn {batch} at a time")


if __name__ == "__main__":
    typer.run(main)
