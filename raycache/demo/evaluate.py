"""``python -m raycache.demo.evaluate``: how often images match their held-out captions."""

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
from raycache.demo.family import DemoFamily
from raycache.demo.judge import STRICT, USUAL, Verdict, judge, shares
from raycache.demo.world import Scene, random_scene
from raycache.models.generating import generate_images
from raycache.size import Size

if TYPE_CHECKING:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline


def held_out_scenes(count: int, seed: int = 1, *, never_told: bool = False) -> list[Scene]:
    """``count`` different scenes whose captions were not in training.

    Args:
        never_told: nor was the same scene described from its other thing; the share of pairs stays the same.
    """
    rng = np.random.default_rng(seed)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = random_scene(rng, held_out=True)
        things = len(scene.things)
        while never_told and not (scene.never_told and len(scene.things) == things):
            scene = random_scene(rng, held_out=True)
        scenes[scene.caption] = scene
    return list(scenes.values())


def load(folder: str, dtype: torch.dtype = torch.float32) -> FluxPipeline:
    """The pipeline in ``folder``, silent."""
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def verdicts(
    pipe: FluxPipeline,
    scenes: list[Scene],
    *,
    steps: int = 28,
    batch: int = 25,
    size: Size = Size(128, 128),
    true_cfg_scale: float = 1.0,
    guidance_scale: float | None = None,
) -> Iterator[list[tuple[Verdict, Verdict]]]:
    """Generate ``scenes`` from seeds 0, 1, ... and judge them, in batches, by the usual and the strict bar."""
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        captions, seeds = [scene.caption for scene in part], range(start, start + len(part))
        images = generate_images(
            pipe, captions, seeds, steps=steps, size=size, true_cfg_scale=true_cfg_scale, guidance_scale=guidance_scale
        )
        pairs = list(zip(part, images, strict=True))
        yield [(judge(scene, image, USUAL), judge(scene, image, STRICT)) for scene, image in pairs]


def main(
    model: Annotated[str, typer.Option(help="Folder of a model of the same world, or `demo`.")] = "demo",
    captions: Annotated[int, typer.Option(help="Held-out captions to generate.")] = 500,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 28,
    batch: Annotated[int, typer.Option(help="Images generated at a time.")] = 25,
    width: Annotated[int, typer.Option(help="Pixels.")] = 128,
    height: Annotated[int, typer.Option(help="Pixels.")] = 128,
    true_cfg: Annotated[float, typer.Option(help="Scale of true CFG against an empty prompt; 1 = none.")] = 1.0,
    guidance: Annotated[float | None, typer.Option(help="Guidance that it is told; 3.5, or 1 with true CFG.")] = None,
) -> None:
    """Generate captions that were not in training, without a cache, and print the shares judged correct."""
    pipe = load(str(demo_model_path()) if model == "demo" else model)
    console = Console(stderr=True)
    started = time.perf_counter()
    read: list[tuple[Verdict, Verdict]] = []
    scenes = held_out_scenes(captions, never_told=True)
    size = Size(width, height)
    told = DemoFamily().guidance(3.5, true_cfg) if guidance is None else guidance
    guided = {"true_cfg_scale": true_cfg, "guidance_scale": told}
    parts = verdicts(pipe, scenes, steps=steps, batch=batch, size=size, **guided)
    for part in track(parts, total=-(-captions // batch), description="drawing", console=console):
        read += part
    title = f"{captions} held-out captions, {steps} steps, {size}, guidance {told:g}"
    title += f", true CFG {true_cfg:g}" if true_cfg > 1 else ""
    table = Table("part of the caption", "as asked", "strictly", title=title)
    usual, strict = (shares(list(column)) for column in zip(*read, strict=True))
    for name, share in usual.items():
        table.add_row(name.replace("_", " "), f"{share:.1%}", f"{strict[name]:.1%}")
    Console().print(table)
    console.print(f"{(time.perf_counter() - started) / captions:.2f} s an image, drawn {batch} at a time")


if __name__ == "__main__":
    typer.run(main)
