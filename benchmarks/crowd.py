"""What `benchmarks.many_jobs` measures from outside: throughput, waiting behind other jobs, and a run for a plot."""

from __future__ import annotations

import itertools
import queue
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.report import quantile
from benchmarks.timeline import Line
from benchmarks.ways import NO_CACHE, TIMEOUT_S, Amounts, Both, Row, Ticks, Way, in_turns, mean_rows
from raycache.protocol.job import Job

__all__ = ["flood", "head_of_line", "mixed_steps", "scene", "small_mix", "throughput"]

Asked = dict[str, Any]


def small_mix(path: Path, count: int) -> list[Asked]:
    """Requests from ``loadtests/mix_small.yaml``, the same at each call."""
    from loadtests.mix import load_mix

    mix, rng = load_mix(path), random.Random(0)
    return [mix.draw(rng).body for _ in range(count)]


def mixed_steps(count: int) -> list[Asked]:
    """Requests of one size with different steps and guidance."""
    rng = random.Random(0)
    return [
        {
            "size": "64x64",
            "seed": rng.randrange(6),
            "num_inference_steps": rng.choice((4, 6, 10, 16, 24)),
            "guidance_scale": rng.choice((1.5, 3.5, 7.0)),
        }
        for _ in range(count)
    ]


def throughput(both: Both, amounts: Amounts, name: str, requests: Sequence[Asked]) -> list[Row]:
    """A closed loop: each client submits, waits, submits again, until all requests are answered."""
    images = Row(f"{name}: throughput", "images/min")
    rows = Row(f"{name}: mean of a call", "images")
    p50, p95 = Row(f"{name}: latency p50", "s"), Row(f"{name}: latency p95", "s")
    for _, pair in in_turns(both, amounts.rounds):
        seen: dict[str, tuple[float, list[float], float]] = {}
        for way in pair:
            way.recorder.take()
            seconds, latencies = _closed_loop(way, requests, amounts.clients)
            seen[way.name] = 60 * len(requests) / seconds, latencies, mean_rows(way.recorder.take())
        images.add({way: value[0] for way, value in seen.items()})
        rows.add({way: value[2] for way, value in seen.items()})
        p50.add({way: statistics.median(value[1]) for way, value in seen.items()})
        p95.add({way: quantile(value[1], 0.95) for way, value in seen.items()})
    return [images, rows, p50, p95]


def _closed_loop(way: Way, requests: Sequence[Asked], clients: int) -> tuple[float, list[float]]:
    """Seconds for all requests together, and for each."""
    todo: queue.SimpleQueue[Asked] = queue.SimpleQueue()
    for request in requests:
        todo.put(request)

    def client(number: int) -> list[float]:
        took: list[float] = []
        while True:
            try:
                request = dict(todo.get_nowait())
            except queue.Empty:
                return took
            took.append(way.draw_s(way.job(seeds=(request.pop("seed"),), **request), f"client {number}"))

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        latencies = list(itertools.chain.from_iterable(pool.map(client, range(clients))))
    return time.monotonic() - began, latencies


def head_of_line(both: Both, amounts: Amounts) -> list[Row]:
    """A 4-step job that arrives during a long one: its time relative to its time alone."""
    rows = [
        Row(f"4 steps behind {amounts.long_steps} of {whose} caller", "relative to alone")
        for whose in ("its own", "another")
    ]
    for _, pair in in_turns(both, amounts.rounds):
        for row, caller in zip(rows, ("short", "long"), strict=True):
            row.add({way.name: _behind(way, amounts.long_steps, caller) for way in pair})
    return rows


def _short(way: Way) -> Job:
    return way.job(size="128x128", num_inference_steps=4, cache=NO_CACHE)


def _behind(way: Way, long_steps: int, caller: str) -> float:
    alone = way.draw_s(_short(way), "short")
    far = threading.Event()
    long = way.job(size="256x256", num_inference_steps=long_steps, cache=NO_CACHE)
    handle = way.gang.submit(long, caller=caller, on_progress=lambda _: far.set())
    if not far.wait(TIMEOUT_S):
        raise TimeoutError(f"{way.name}: the long job reported no step within {TIMEOUT_S:g} s")
    with_it = way.draw_s(_short(way), "short")
    handle.future.result(TIMEOUT_S)
    return with_it / alone


def flood(both: Both, amounts: Amounts) -> list[Row]:
    """One caller submits many jobs together, another one at a time meanwhile: its p95, and the total throughput."""
    row = Row(f"one at a time during a flood of {amounts.flood}, p95", "relative to alone")
    whole = Row(f"both together with a flood of {amounts.flood}", "images/min")
    for _, pair in in_turns(both, amounts.rounds):
        seen = {way.name: _flooded(way, amounts.flood) for way in pair}
        row.add({way: value[0] for way, value in seen.items()})
        whole.add({way: value[1] for way, value in seen.items()})
    return [row, whole]


def _flooded(way: Way, count: int) -> tuple[float, float]:
    alone = way.draw_s(_short(way), "one")
    began = time.monotonic()
    handles = [way.submit(_short(way), "flood") for _ in range(count)]
    took: list[float] = []
    while not took or not all(handle.future.done() for handle in handles):
        took.append(way.draw_s(_short(way), "one"))
    seconds = time.monotonic() - began
    for handle in handles:
        handle.future.result(TIMEOUT_S)
    return quantile(took, 0.95) / alone, 60 * (count + len(took)) / seconds


def scene(way: Way) -> tuple[list[Line], Ticks]:
    """Ten jobs of three callers that arrive one after the other, for a timeline."""
    cached = {"type": "DBCache", "residual_diff_threshold": 0.3, "warmup_steps": 2}
    # Gaps between arrivals are counted in calls, whatever the machine, or all would coincide or none would overlap.
    play: list[tuple[float, str, Asked]] = [
        (0, "studio", {"size": "128x128", "num_inference_steps": 24, "cache": NO_CACHE}),
        (4, "chat", {"size": "64x64", "num_inference_steps": 10, "cache": cached}),
        (2, "chat", {"size": "64x64", "num_inference_steps": 14, "cache": cached, "guidance_scale": 7.0}),
        (2, "app", {"size": "64x64", "num_inference_steps": 10, "cache": cached}),
        (3, "app", {"size": "128x128", "num_inference_steps": 8, "cache": cached}),
        (5, "chat", {"size": "64x64", "num_inference_steps": 6, "cache": {**cached, "residual_diff_threshold": 0.1}}),
        (4, "studio", {"size": "128x128", "num_inference_steps": 12, "cache": NO_CACHE}),
        (4, "app", {"size": "64x64", "num_inference_steps": 10, "cache": NO_CACHE}),
        (4, "chat", {"size": "64x64", "num_inference_steps": 10, "cache": {"type": "FBCache"}}),
        (4, "chat", {"size": "64x64", "num_inference_steps": 4, "cache": cached}),
    ]
    way.draw_s(way.job(size="64x64", num_inference_steps=6, cache=NO_CACHE))
    call_s = statistics.median(call.seconds for _, report in way.recorder.take()[-5:] for call in report.calls)
    handles, ended = [], dict[str, float]()
    for pause, caller, asked in play:
        time.sleep(pause * call_s)
        handles.append(way.submit(job := way.job(**asked), caller))
        handles[-1].future.add_done_callback(_noting(ended, job.id))
    for handle in handles:
        handle.future.result(TIMEOUT_S)
    lines = []
    for handle, (_, caller, asked) in zip(handles, play, strict=True):
        label = f"{caller}: {asked['size']}, {asked['num_inference_steps']} steps, {asked['cache']['type']}"
        lines.append(Line(handle.job.id, label, caller, handle.arrived, ended[handle.job.id]))
    return lines, way.recorder.take()


def _noting(ended: dict[str, float], job: str) -> Callable[[object], None]:
    return lambda _: ended.__setitem__(job, time.monotonic())
