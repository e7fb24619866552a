"""Section *decoding*: the autoencoder's time, whole and in tiles, alone and during calls of the transformer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from diffusers.models import AutoencoderKL

from benchmarks.gpu.measuring import attempt, peak_gib, seconds_of
from benchmarks.gpu.models import Steps, autoencoder, flux, unfit
from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder

__all__ = ["measure"]


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """Rows for each size; then one for decoding and transformer calls at the same time."""
    dtype = getattr(torch, plan.shape.dtype)
    vae = autoencoder(plan.small, dtype, plan.device)
    for side in plan.shape.sides:
        for way in ("whole", "tiles"):
            if way == "tiles" and side <= vae.tile_sample_min_size and not plan.small:
                continue  # it is one tile
            with attempt(recorder, f"{side} x {side}, {way}", plan.device):
                vae.use_tiling = way == "tiles"
                latents = _latents(side, dtype, plan.device)
                decode = functools.partial(vae.decode, latents)
                first = seconds_of(plan.device, decode)
                seconds = min(seconds_of(plan.device, decode) for _ in range(3))
                row = {"image": f"{side} x {side}", "way": way, "s": seconds, "first, s": first}
                recorder.add("Decoding", **row, **{"peak GiB": peak_gib(plan.device)})
    if why := unfit(plan, facts):
        recorder.skip("decoding during calls of the transformer", why)
        return
    with attempt(recorder, "decoding during calls of the transformer", plan.device):
        _beside(plan, vae, recorder)


def _latents(side: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.randn(1, 16, side // 8, side // 8).to(device, dtype)


def _beside(plan: Plan, vae: AutoencoderKL, recorder: Recorder) -> None:
    vae.use_tiling = False
    model, steps = flux(plan.shape, plan.device), Steps(plan.shape, plan.device, 2 if plan.small else 4)
    latents = _latents(plan.shape.sides[len(plan.shape.sides) // 2], vae.dtype, plan.device)

    def calls() -> None:
        steps.run(model)

    def decode() -> None:
        vae.decode(latents)

    together = _at_once(calls, decode, plan.device)
    together()
    times = [seconds_of(plan.device, work) for work in (calls, decode, together)]
    names = (f"{steps.count} calls alone, s", "decoding alone, s", "together, s")
    row = dict(zip(names, times, strict=True))
    recorder.add("Decoding during calls", **row, **{"hidden": (times[0] + times[1] - times[2]) / times[1]})


def _at_once(calls: Callable[[], None], decode: Callable[[], None], device: str) -> Callable[[], None]:
    """Both together, as in a rank: decoding in its own thread and stream."""
    stream = torch.cuda.Stream() if device == "cuda" else None

    def aside() -> None:
        # Gradient mode and the current stream are per thread.
        with torch.no_grad(), torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            decode()

    def both() -> None:
        with ThreadPoolExecutor(1, "decode") as pool:
            decoded = pool.submit(aside)
            calls()
            decoded.result()

    return both
