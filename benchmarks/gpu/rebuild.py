"""Section *rebuild*: a rank of a gang is killed; seconds until the new ranks are ready, by stage."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.measuring import attempt
from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder

__all__ = ["measure"]

TABLE = "Rebuild of a gang"
_PATIENCE_S = 600.0


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """Rows for the largest gang, in as many variants as there is time for."""
    import ray

    from raycache.demo.noise import build_noise_model

    # Logical CPUs, so that gangs can be placed on any machine. GPUs are those that Ray finds.
    found: dict[str, Any] = {"num_gpus": 0} if plan.device == "cpu" else {}
    ray.init(
        address="local",
        num_cpus=16,
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **found,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            layers = {"layers": 2, "single_layers": 4} if plan.small else {}
            model = plan.model or str(build_noise_model(Path(folder) / "model", heads=8, **layers))
            if not plan.model:
                recorder.note(
                    "The model is FLUX with random weights and a width of 128: loading it takes almost no time, "
                    "processes and warm-up take as long as ever. --model FOLDER rebuilds a gang with a real one."
                )
            world = plan.worlds(len(facts.devices))[-1]
            for variant in _variants(plan):
                with attempt(recorder, variant.name, plan.device):
                    row = _rebuilt(plan, model, world, variant)
                    recorder.add(TABLE, gang=f"{world} ranks, {variant.name}", **row)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Variant:
    name: str
    compiled: bool
    spares: bool


def _variants(plan: Plan) -> list[_Variant]:
    """A rehearsal has no spares, because it would have to wait for them; quick uses the defaults of production."""
    plain, spares = _Variant("no spares", False, False), _Variant("spares", False, True)
    if plan.small:
        return [plain]
    return [spares] if plan.quick else [spares, plain, _Variant("spares, compiled", True, True)]


def _rebuilt(plan: Plan, model: str, world: int, variant: _Variant) -> dict[str, float]:
    from cache_core import DBCacheOptions
    from raycache.gang.gang import Gang
    from raycache.protocol.job import ImageSpec, Job
    from raycache.settings import AppSettings
    from raycache.size import Size

    size = "64x64" if plan.small else "1024x1024"
    threads = {"threads_per_rank": 1} if plan.device == "cpu" else {}
    options = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2)
    settings = AppSettings.model_validate(
        {
            "model": {"path": model, "dtype": plan.shape.dtype, "compile": variant.compiled},
            "parallel": {
                "ranks_per_replica": world,
                "device": plan.device,
                "rank_cpus": 0.25,
                "spare_processes": variant.spares,
                **threads,
            },
            "cache": options.model_dump(),
            "defaults": {"size": size, "num_inference_steps": 4},
            "warmup": [{"size": size}],
        }
    )

    def image() -> float:
        began = time.monotonic()
        job = Job(f"rebuild-{began}", Size.parse(size), (ImageSpec("a red circle", 7, 3.5, options),), 4)
        gang.submit(job).future.result(_PATIENCE_S)
        return time.monotonic() - began

    gang = Gang(settings, name="gpu-benchmark")
    began = time.monotonic()
    try:
        gang.start()
        started = time.monotonic() - began
        usual = image()
        if variant.spares:
            time.sleep(started)  # they import libraries while a gang is running
        killed = time.time()
        os.kill(gang.status().ranks[-1]["pid"], signal.SIGKILL)
        seconds = _recovery(gang, killed)
        return {"first start, s": started, **seconds, "image before, s": usual, "image after, s": image()}
    finally:
        gang.shutdown()


def _recovery(gang: Any, killed: float) -> dict[str, float]:
    """Seconds by stage, once the gang is ready again.

    Raises:
        TimeoutError: it was not ready within the time that any gang needs.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (last := gang.status().last_recovery) is None or last.ready_s is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the gang was not ready {_PATIENCE_S:g} s after a rank of it was killed")
        time.sleep(0.05)
    noticed = last.noticed_at - killed
    stages = {f"{name}, s": seconds for name, seconds in last.stages.items()}
    return {"detected, s": noticed, "old ranks ended, s": last.killed_s, **stages, "total, s": noticed + last.ready_s}
