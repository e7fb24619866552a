"""Generates images without and with a cache and saves each setting's measurements, so that a sweep can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_core import cache_session
from cache_core.options import CacheOptions, NoCacheOptions
from raycache.models.generating import generate_images
from raycache.size import Size
from raycache.tune.candidates import Family
from raycache.tune.measures import feature_distance, psnr, ssim


@dataclass(frozen=True)
class Job:
    """The images that every setting generates.

    Attributes:
        prompts: one image each, from seeds 0, 1, ...
        steps: denoising steps.
        size: size of each image.
        batch: images generated at a time.
    """

    prompts: tuple[str, ...]
    steps: int
    size: Size
    batch: int


@dataclass(frozen=True)
class Point:
    """One setting, measured.

    Attributes:
        family: its family's name.
        options: the setting as JSON values.
        share: share of blocks computed, mean over the images, 0 to 1.
        psnr: mean dB to the uncached image of the same seed, equal images counted as 60.
        ssim: mean structural similarity.
        distance: mean perceptual distance (``measures.feature_distance``).
        seconds: seconds per image, generated ``batch`` at a time; CPU time on a CPU, where others may run, too.
    """

    family: str
    options: dict[str, Any]
    share: float
    psnr: float
    ssim: float
    distance: float
    seconds: float


def clock_of(pipe: Any) -> Callable[[], float]:
    """The clock for measuring: wall time on a GPU, CPU time of this process (all threads) on a CPU."""
    return time.process_time if pipe.device.type == "cpu" else time.perf_counter


def draw(pipe: Any, job: Job, options: CacheOptions) -> tuple[np.ndarray, float, float]:
    """All images of a job under ``options``.

    Returns:
        uint8 images ``[prompts, height, width, 3]``, mean share of blocks computed, seconds per image.
    """
    pictures, shares = [], []
    clock = clock_of(pipe)
    started = clock()
    for start in range(0, len(job.prompts), job.batch):
        prompts = job.prompts[start : start + job.batch]
        with cache_session(pipe.transformer, options.for_steps(job.steps)) as report:
            seeds = range(start, start + len(prompts))
            drawn = generate_images(pipe, prompts, seeds, steps=job.steps, size=job.size)
        pictures.append(drawn)
        shares += report.computed_block_fraction
    seconds = (clock() - started) / len(job.prompts)
    return np.concatenate(pictures), float(np.mean(shares)), seconds


def compare(pipe: Any, job: Job, options: CacheOptions, references: np.ndarray, family: str) -> Point:
    """Measure one setting against the uncached images."""
    pictures, share, seconds = draw(pipe, job, options)
    return Point(
        family,
        options.to_dict(),
        share,
        float(psnr(pictures, references).mean()),
        float(ssim(pictures, references).mean()),
        float(feature_distance(pipe.vae, pictures, references).mean()),
        seconds,
    )


class Sweep:
    """The measured points of one model and job, in a folder.

    Args:
        folder: contains ``points.jsonl`` and ``references.npz``; created if missing.
        model: name of the model, to check that a resumed sweep is the same one.
        job: also checked.

    Raises:
        ValueError: ``folder`` contains a sweep of another model or job.
    """

    def __init__(self, folder: Path, model: str, job: Job) -> None:
        self.folder, self.job = folder, job
        folder.mkdir(parents=True, exist_ok=True)
        values = asdict(job)
        values |= values.pop("size")  # flat, as in existing folders
        told = json.dumps({"model": model, **values}, sort_keys=True)
        self._mark = hashlib.sha256(told.encode()).hexdigest()[:16]
        mark = folder / "job.txt"
        if mark.exists() and mark.read_text().strip() != self._mark:
            raise ValueError(f"{folder} contains a sweep of another model or of other prompts; choose another --out")
        mark.write_text(self._mark + "\n")
        self.points: dict[str, Point] = {}
        if (path := folder / "points.jsonl").exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the last line of a sweep that was killed
                    self._remember(Point(**json.loads(line)))

    def references(self, pipe: Any) -> np.ndarray:
        """The uncached images, generated once; their time is saved as the first point."""
        path = self.folder / "references.npz"
        if path.exists():
            return np.load(path)["pictures"]
        pictures, share, seconds = draw(pipe, self.job, NoCacheOptions())
        self._keep(Point("uncached", NoCacheOptions().to_dict(), share, 60.0, 1.0, 0.0, seconds))
        half = path.with_suffix(".tmp.npz")
        np.savez_compressed(half, pictures=pictures)
        half.rename(path)  # complete or not at all, even if killed
        return pictures

    def run(self, pipe: Any, candidates: list[Family], lowest_psnr: float) -> Iterator[Point]:
        """Measure what is not measured yet; a family ends at its first setting below ``lowest_psnr``.

        Yields:
            Every point as soon as it is known, including those of an earlier run.
        """
        references = self.references(pipe)
        for family in candidates:
            for options in family.options:
                point = self.points.get(_key(options.to_dict()))
                if point is None:
                    point = compare(pipe, self.job, options, references, family.name)
                    self._keep(point)
                yield point
                if point.psnr < lowest_psnr:
                    break

    def _keep(self, point: Point) -> None:
        with (self.folder / "points.jsonl").open("a") as file:
            file.write(json.dumps(asdict(point)) + "\n")
        self._remember(point)

    def _remember(self, point: Point) -> None:
        self.points[_key(point.options)] = point


def frontier(points: list[Point]) -> list[Point]:
    """The points not beaten in both computed share and PSNR, the most careful first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.share, -p.psnr)):
        if not best or point.psnr > best[-1].psnr:
            best.append(point)
    return best[::-1]


def choose(points: list[Point], target: float) -> Point | None:
    """The setting that computes the fewest blocks at ``target`` dB or more; None if none reaches it."""
    holding = [point for point in points if point.psnr >= target]
    return min(holding, key=lambda point: (point.share, -point.psnr), default=None)


def _key(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)
