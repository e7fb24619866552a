"""Generates images without and with a cache and saves each setting's measurements, so that a sweep can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache_core import apply_cache_on_pipe, cache_reports, remove_cache
from cache_core.options import CacheOptions, NoCacheOptions
from cache_core.report import CacheReport
from raycache.models.generating import generate_images
from raycache.presets.auto import ForecastCurve
from raycache.size import Size
from raycache.tune.candidates import Family
from raycache.tune.measures import PSNR_CAP, feature_distance, psnr, ssim

#: dB from which images of two runs are the same but for the order of sums on a GPU.
_SAME = 45.0
#: Times within this factor are equal.
_EQUAL = 1.2


@dataclass(frozen=True)
class Job:
    """The images that every setting generates.

    Attributes:
        prompts: one image each, from seeds 0, 1, ...
        steps: denoising steps.
        size: size of each image.
        batch: images generated at a time.
        frames: of each video, if the model makes videos.
    """

    prompts: tuple[str, ...]
    steps: int
    size: Size
    batch: int
    frames: int = 1


@dataclass(frozen=True)
class Point:
    """One setting, measured.

    Attributes:
        family: its family's name.
        options: the setting as JSON values.
        share: share of blocks computed, mean over the images, 0 to 1.
        psnr: mean dB to the uncached image of the same seed, equal images counted as 60.
        ssim: mean structural similarity.
        distance: mean perceptual distance (``measures.feature_distance``); NaN if the autoencoder is not one of images.
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
        uint8 images ``[prompts, height, width, 3]`` or videos ``[prompts, frames, height, width, 3]``, mean share of
        blocks computed over all transformers, seconds per image.
    """
    images, shares = [], []
    clock = clock_of(pipe)
    started = clock()
    apply_cache_on_pipe(pipe, options.type, **options.model_dump(exclude={"type"}))
    try:
        for start in range(0, len(job.prompts), job.batch):
            prompts = job.prompts[start : start + job.batch]
            seeds = range(start, start + len(prompts))
            images.append(generate_images(pipe, prompts, seeds, steps=job.steps, size=job.size, frames=job.frames))
            shares += [computed_share(list(cache_reports(pipe).values()))] * len(prompts)
    finally:
        remove_cache(pipe)
    seconds = (clock() - started) / len(job.prompts)
    return np.concatenate(images), float(np.mean(shares)), seconds


def computed_share(reports: list[CacheReport]) -> float:
    """Share of the blocks that ran, over all images, branches and transformers of a call."""
    decided = [(report, image) for report in reports for step in report.steps for image in step.images]
    return sum(image.computed_blocks for _, image in decided) / sum(report.num_blocks for report, _ in decided)


def compare(pipe: Any, job: Job, options: CacheOptions, references: np.ndarray, family: str) -> Point:
    """Measure one setting against the uncached images."""
    images, share, seconds = draw(pipe, job, options)
    return Point(
        family,
        options.to_dict(),
        share,
        float(psnr(images, references).mean()),
        float(ssim(images, references).mean()),
        float(feature_distance(pipe.vae, images, references).mean()),
        seconds,
    )


class OtherSweepError(ValueError):
    """A folder contains the results of another sweep."""


class Sweep:
    """The measured points of one model and job, in a folder.

    Args:
        folder: contains ``points.jsonl`` and ``references.npz``; created if missing.
        model: name, dtype and quantization of the model, to check that a resumed sweep is of the same one.
        job: also checked.

    Raises:
        OtherSweepError: ``folder`` contains a sweep of another model or job.
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
            message = f"{folder} contains a sweep of another model or of other prompts; choose another --out"
            raise OtherSweepError(message)
        mark.write_text(self._mark + "\n")
        self.points: dict[str, Point] = {}
        self._references: np.ndarray | None = None
        if (path := folder / "points.jsonl").exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the last line of a sweep that was killed
                    self._remember(Point(**json.loads(line)))

    def references(self, pipe: Any) -> np.ndarray:
        """The uncached images, generated once; their time is saved as the first point.

        Raises:
            OtherSweepError: saved ones are not what ``pipe`` generates now: other weights, LoRAs or libraries. A name
                cannot show that, so the first of them are generated again.
        """
        path = self.folder / "references.npz"
        if self._references is not None:
            return self._references
        if path.exists():
            with np.load(path) as archive:  # sweeps begun before December 2026 have pictures
                saved: np.ndarray = archive["images" if "images" in archive else "pictures"]
            first = replace(self.job, prompts=self.job.prompts[: self.job.batch])
            again = draw(pipe, first, NoCacheOptions())[0]
            if (nearest := float(psnr(again, saved[: len(again)]).min())) < _SAME:
                raise OtherSweepError(
                    f"{self.folder} contains a sweep of other weights: without a cache, the model generates other "
                    f"images than those saved there ({nearest:.1f} dB); choose another --out"
                )
            self._references = saved
            return saved
        # Untimed: libraries are loaded, and blocks compiled, by the first.
        draw(pipe, replace(self.job, prompts=self.job.prompts[: self.job.batch]), NoCacheOptions())
        images, share, seconds = draw(pipe, self.job, NoCacheOptions())
        self._keep(Point("uncached", NoCacheOptions().to_dict(), share, PSNR_CAP, 1.0, 0.0, seconds))
        half = path.with_suffix(".tmp.npz")
        np.savez_compressed(half, images=images)
        half.rename(path)  # complete or not at all, even if killed
        self._references = images
        return images

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
    """The points not beaten in both seconds and PSNR, the most careful first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.seconds, -p.psnr)):
        if not best or point.psnr > best[-1].psnr:
            best.append(point)
    return best[::-1]


def choose(points: list[Point], target: float) -> Point | None:
    """One of the fastest settings at ``target`` dB or more; None if none reaches it.

    Not the fewest blocks: a method's own work counts, and blocks differ in cost. But seconds are measured once, and on
    a shared machine the same job again took 13 % more or less. So of the settings within a fifth of the fastest the one
    of the fewest blocks is chosen.
    """
    holding = [point for point in points if point.psnr >= target]
    fastest = min((point.seconds for point in holding), default=0.0)
    equal = [point for point in holding if point.seconds <= _EQUAL * fastest]
    return min(equal, key=lambda point: (point.share, -point.psnr), default=None)


def forecast_curve(points: list[Point]) -> ForecastCurve | None:
    """PSNR over the threshold of ForecastCache, with the shortest warm-up that was measured at two thresholds or more.

    A threshold that is not below the PSNR of a smaller one is left out: by chance, on few images.
    """
    curves: dict[int, list[tuple[float, float]]] = {}
    measured = [point for point in points if point.options["type"] == "ForecastCache"]
    for point in sorted(measured, key=lambda each: each.options["residual_diff_threshold"]):
        known = curves.setdefault(point.options["warmup_steps"], [])
        value = round(point.psnr, 2)
        if not known or value < known[-1][0]:
            known.append((value, point.options["residual_diff_threshold"]))
    usable = [warmup for warmup, known in curves.items() if len(known) > 1]
    return ForecastCurve(warmup_steps=min(usable), points=tuple(curves[min(usable)])) if usable else None


def _key(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)
