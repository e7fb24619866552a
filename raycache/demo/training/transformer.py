"""Second half of the training: text encoders and transformer, few blocks first, then all, then guidance."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cache_core.blocks import find_blocks
from raycache.demo.training.drawer import Drawer, grow
from raycache.demo.training.latents import OTHER_SIZES, Latents, told_forward, untold
from raycache.demo.training.losses import flow_loss, guided_loss

NOISE = (1.2, 0.4)
"""Mean logit of the share of noise, early and later: much noise teaches layout, less noise outlines."""
FORWARD = (0.9, 0.3)
"""Share of captions with the left or upper thing first, early and later."""
AVERAGE_DECAY = 0.998


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: of its checkpoint file.
        layers: double-stream blocks.
        single_layers: single-stream blocks.
        steps: optimizer steps.
        batch: scenes of 128x128 per step, over all processes; fewer for larger images.
        rate: peak of AdamW's learning rate; Muon's is ``MUON_RATIO`` times it.
        warmup: steps of linear warm-up.
        fall_from: share of the steps after which the rate falls linearly to ``last_rate`` of the peak.
        last_rate: share of the peak at the end.
        other_sizes: share of the steps on other sizes than 128x128, once ``sizes_from`` of the steps are done.
        sizes_from: see ``other_sizes``.
        untold: share of the scenes without a caption: true CFG compares with what the model draws for none.
        layout_until: steps that are early: much noise, and nearly all captions name the left or upper thing first.
    """

    name: str
    layers: int
    single_layers: int
    steps: int
    batch: int
    rate: float
    warmup: int
    fall_from: float
    last_rate: float
    other_sizes: float
    sizes_from: float
    untold: float
    layout_until: int


MUON_RATIO = 4.0


def train_stage(
    out: Path,
    stage: Stage,
    sets: list[Latents],
    words: tuple[int, int],
    device: torch.device,
    seed: int,
    compile_blocks: bool = True,
    previous: Drawer | None = None,
    teacher: Drawer | None = None,
    save_every: int = 100,
) -> Generator[tuple[int, dict[str, float]], None, None]:
    """Train one stage, save to ``out / f"{stage.name}.pt"`` regularly, and continue from it if it exists.

    Args:
        out: folder of the checkpoints.
        stage: the stage's parameters.
        sets: latents, 128x128 first.
        words: sizes of T5's and CLIP's vocabularies.
        device: where to train.
        seed: of weights, order and noise.
        compile_blocks: compile each block, for each size.
        previous: the smaller drawer to grow from; None: start from scratch.
        teacher: start as this one, and learn from it what it predicts with true CFG.
        save_every: steps between checkpoints.

    Yields:
        (steps done, figures to show) after every step.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(seed)
    model = copy.deepcopy(teacher) if teacher else _begun(stage, words, previous)
    training = _Training(model.to(device), stage, out / f"{stage.name}.pt", world)
    if teacher:
        teacher.to(device).requires_grad_(False)
    _compile([model, teacher] if compile_blocks else [])
    scenes = Scenes(stage, sets, seed, rank, world)
    smooth = None
    for step in range(training.done, stage.steps):
        part, rng = scenes.of(step)
        drawn = part, NOISE[step >= stage.layout_until], rng, device
        loss = guided_loss(model, teacher, *drawn) if teacher else flow_loss(model, *drawn)
        training.learn(step, loss)
        if not math.isfinite(value := loss.item()):
            raise RuntimeError(f"{stage.name}: the loss is {value} at step {step}; lower the rate")
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        if rank == 0 and ((step + 1) % save_every == 0 or step + 1 == stage.steps):
            training.save(step + 1)
        yield step + 1, {"loss": smooth}


def _compile(models: list[Drawer | None]) -> None:
    for model in filter(None, models):
        for block in find_blocks(model.transformer):
            module: Any = block.module  # replaces a method, which its types do not allow
            module.forward = torch.compile(module.forward, dynamic=False)  # a fifth faster than dynamic shapes


def _begun(stage: Stage, words: tuple[int, int], previous: Drawer | None) -> Drawer:
    return grow(previous, *words) if previous else Drawer(stage.layers, stage.single_layers, *words)


class _Training:
    """A model, its average over the last steps, and its optimizers; loaded from ``path`` if that exists.

    Attributes:
        done: steps done before.
    """

    def __init__(self, model: Drawer, stage: Stage, path: Path, world: int) -> None:
        self._model, self._stage, self._path, self._world = model, stage, path, world
        self._average = copy.deepcopy(model).requires_grad_(False)
        self._optimizers = make_optimizers(model, stage.rate)
        self.done = 0
        if path.exists():
            device = next(model.parameters()).device
            state = torch.load(path, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            self._average.load_state_dict(state["average"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.done = state["step"]

    def learn(self, step: int, loss: torch.Tensor) -> None:
        """One step of all optimizers with the loss averaged over all processes."""
        scale, rate = rate_at(step, self._stage), self._stage.rate
        for optimizer, peak in zip(self._optimizers, (rate, rate * MUON_RATIO), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self._model, self._world)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        decay = min(AVERAGE_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self._average.parameters()), list(self._model.parameters()), 1 - decay)

    def save(self, step: int) -> None:
        """Save to the stage's file atomically."""
        state = {
            "model": self._model.state_dict(),
            "average": self._average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "step": step,
        }
        torch.save(state, self._path.with_suffix(".tmp"))
        self._path.with_suffix(".tmp").rename(self._path)


class Scenes:
    """The data of each step of a stage for this process: number ``rank`` of ``world``."""

    def __init__(self, stage: Stage, sets: list[Latents], seed: int, rank: int, world: int) -> None:
        self._stage, self._sets, self._seed = stage, sets, seed
        self._rank, self._world = rank, world
        self._turned = [told_forward(part) for part in sets]
        self._untold = [untold(part) for part in sets]

    def of(self, step: int) -> tuple[Latents, np.random.Generator]:
        """The scenes, and a random generator for the rest of the step."""
        stage, seed = self._stage, self._seed
        # Numbered by step, so a resumed training sees what an uninterrupted one would have.
        rng = np.random.default_rng((seed, 2, stage.layers, step, self._rank))
        # All processes use the same size in a step; otherwise they would wait for the slowest.
        chosen = _choose(len(self._sets), stage, step, np.random.default_rng((seed, 4, step)))
        part = self._sets[chosen]
        count = max(1, stage.batch // self._world * self._sets[0].packed.shape[1] // part.packed.shape[1])
        index = torch.from_numpy(rng.integers(len(part.packed), size=count))
        drawn = _captions(part, self._turned[chosen], FORWARD[step >= stage.layout_until], index, rng)
        if stage.untold:
            drawn = _captions(drawn, self._untold[chosen], stage.untold, torch.arange(count), rng)
        return drawn, rng


def make_optimizers(model: Drawer, rate: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """AdamW for everything but the matrices inside transformer blocks; those go to Muon.

    adaLN matrices start at zero, and Muon's first step would give them full rank, so they stay with AdamW.
    """
    plain: list[torch.nn.Parameter] = []
    matrices: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = "blocks." in name and "norm" not in name and parameter.ndim == 2
        (matrices if inside else plain).append(parameter)
    return (
        torch.optim.AdamW(plain, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=rate * MUON_RATIO, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )


def rate_at(step: int, stage: Stage) -> float:
    """Share of the peak rate at ``step``, counted from 0."""
    start = max(stage.warmup, stage.fall_from * stage.steps)
    fall = (step - start) / max(1.0, stage.steps - start)
    return min((step + 1) / stage.warmup, 1 - (1 - stage.last_rate) * max(0.0, fall))


def average_gradients(model: Drawer, world: int) -> None:
    """Replace each gradient by its mean over ``world`` processes."""
    if world == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    torch._foreach_copy_(
        gradients,
        [
            part.view_as(gradient)
            for part, gradient in zip((flat / world).split([g.numel() for g in gradients]), gradients, strict=True)
        ],
    )


def _captions(part: Latents, other: Latents, share: float, index: torch.Tensor, rng: np.random.Generator) -> Latents:
    """The scenes ``index`` of ``part``, a ``share`` of them described as in ``other``.

    With "left of" and "right of" equally often, nothing shows where the first thing is until both are understood, and
    training did not learn that. Mostly described forward it learns the order first, and then the exceptions.
    """
    others = torch.from_numpy(rng.random(len(index)) < share)[:, None]
    t5_ids = torch.where(others, other.t5_ids[index], part.t5_ids[index])
    clip_ids = torch.where(others, other.clip_ids[index], part.clip_ids[index])
    return Latents(part.packed[index], t5_ids, clip_ids, part.grid)


def _choose(count: int, stage: Stage, step: int, rng: np.random.Generator) -> int:
    """Which of ``count`` sets a step uses."""
    if count > 1 and step >= stage.sizes_from * stage.steps and rng.random() < stage.other_sizes:
        shares = np.array(list(OTHER_SIZES.values()))[: count - 1]
        return 1 + int(rng.choice(count - 1, p=shares / shares.sum()))
    return 0


def load_average(path: Path, layers: int, single_layers: int, words: tuple[int, int]) -> Drawer:
    """A drawer with the averaged weights of a stage."""
    drawer = Drawer(layers, single_layers, *words)
    drawer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["average"])
    return drawer.eval()
