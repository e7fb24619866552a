"""How accurate the service's predictions are: the seconds announced on admission, and `Retry-After`.

    python -m benchmarks.waits [--ranks 2] [--requests 60] [--load 1.2] [--doc | --image waits.png] [--out waits.md]

Mixed jobs of three callers arrive at random times as streams over HTTP (open loop). The prediction is `seconds_left` of
the first event; its error is relative to the actual seconds. A refused client comes back exactly after `Retry-After`,
and the promise counts as kept if it is admitted then.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.progress import Progress, TaskID

from benchmarks.places import doc_option, place
from benchmarks.report import machine, quantile, show_table
from benchmarks.serving import PATH, application, settings_of

CALLERS = ("studio", "chat", "app")
_PATIENCE_S = 600.0
#: Requests in a closed loop before counting starts: the gang learns costs from them, and they show the capacity.
_FIRST, _CLIENTS = 24, 8


@dataclass
class Asked:
    """One request and its outcome.

    Attributes:
        predicted_s, real_s: seconds from admission to the image; None if nothing was predicted, or no image came.
        told_s: `Retry-After` of each refusal.
        status: the last HTTP status.
    """

    caller: str
    predicted_s: float | None = None
    real_s: float | None = None
    told_s: list[float] = field(default_factory=list)
    status: int = 0

    @property
    def error(self) -> float | None:
        """The prediction's error relative to the actual seconds."""
        if self.predicted_s is None or self.real_s is None:
            return None
        return abs(self.predicted_s / self.real_s - 1)


def main(
    config: Path = typer.Option(Path("serve_configs/laptop_two_ranks.yaml"), help="the application's settings"),
    ranks: int = typer.Option(2, min=1, help="ranks of the gang"),
    requests: int = typer.Option(60, min=1, help="requests in the open loop"),
    load: float = typer.Option(1.2, min=0.1, help="arrival rate relative to the gang's capacity"),
    queued_s: float = typer.Option(20.0, help="`max_queued_seconds`: beyond that clients are refused"),
    image: Path | None = typer.Option(None, help="plot predicted against real seconds into this file"),
    doc: bool = doc_option(),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table and draw the plot."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text("".join(f"key-of-{name}  # {name}\n" for name in CALLERS))
        settings = settings_of(
            config,
            False,
            parallel={"ranks_per_replica": ranks},
            ingress={"api_keys_file": str(keys)},
            reliability={"max_queued_seconds": queued_s, "watchdog_floor_s": 60.0},
        )
        with application(settings) as url:
            asked, seconds = asyncio.run(_run(url, requests, load))
    title = f"{config.name}, {ranks} rank(s), {requests} requests at {load:g} of capacity; {machine()}"
    show_table(title, ["what", "value"], _rows(asked, seconds), out)
    _draw(asked, image or place("images/waits.png", doc))


async def _run(url: str, count: int, load: float) -> tuple[list[Asked], float]:
    rng = random.Random(0)
    with Progress() as progress:
        async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE_S) as client:
            each_s = await _closed(client, [_body(rng) for _ in range(_FIRST)], progress)
            bar = progress.add_task("open loop", total=count)
            began, tasks = time.monotonic(), []
            for _ in range(count):
                await asyncio.sleep(rng.expovariate(load / each_s))
                one = Asked(rng.choice(CALLERS))
                tasks.append(asyncio.create_task(_ask(client, one, _body(rng), progress, bar)))
            return list(await asyncio.gather(*tasks)), time.monotonic() - began


async def _closed(client: httpx.AsyncClient, bodies: list[dict[str, Any]], progress: Progress) -> float:
    """Seconds per request, with several running at the same time."""
    bar, began = progress.add_task("closed loop", total=len(bodies)), time.monotonic()
    places = asyncio.Semaphore(_CLIENTS)

    async def one(body: dict[str, Any]) -> None:
        async with places:
            await _ask(client, Asked(CALLERS[0]), body, progress, bar, often=9)

    await asyncio.gather(*(one(body) for body in bodies))
    return (time.monotonic() - began) / len(bodies)


def _body(rng: random.Random) -> dict[str, Any]:
    cached = {"type": "DBCache", "residual_diff_threshold": rng.choice((0.1, 0.3)), "warmup_steps": 2}
    return {
        "prompt": "a large red circle on a gray background",
        "size": rng.choice(("64x64", "64x64", "96x96", "128x128")),
        "num_inference_steps": rng.choice((4, 8, 12, 20)),
        "guidance_scale": rng.choice((1.5, 3.5, 7.0)),
        "cache": rng.choice(({"type": "none"}, cached, cached)),
        "seed": rng.randrange(6),
    }


async def _ask(
    client: httpx.AsyncClient, one: Asked, body: dict[str, Any], progress: Progress, bar: TaskID, often: int = 2
) -> Asked:
    """Send once, and again after each `Retry-After`, at most ``often`` times in total."""
    headers = {"authorization": f"Bearer key-of-{one.caller}"}
    for _ in range(often):
        async with client.stream("POST", PATH, json={**body, "stream": True}, headers=headers) as response:
            one.status = response.status_code
            if response.status_code == 200:
                await _read(response, one)
                break
            await response.aread()
        if "retry-after" not in response.headers:
            break
        one.told_s.append(float(response.headers["retry-after"]))
        await asyncio.sleep(one.told_s[-1])
    progress.advance(bar)
    return one


async def _read(response: httpx.Response, one: Asked) -> None:
    admitted = time.monotonic()
    async for event in _events(response):
        if event["type"] == "raycache.queued" and one.predicted_s is None:
            admitted, one.predicted_s = time.monotonic(), event["seconds_left"]
        if event["type"] == "image_generation.completed":
            one.real_s = time.monotonic() - admitted


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _rows(asked: list[Asked], seconds: float) -> list[list[str]]:
    errors = [one.error for one in asked if one.error is not None]
    told = [one for one in asked if one.told_s]
    back = sum(one.status == 200 and len(one.told_s) == 1 for one in told)
    drawn = sum(one.real_s is not None for one in asked)
    return [
        ["generated", f"{drawn} of {len(asked)}, {60 * drawn / seconds:.1f} per minute"],
        ["predicted seconds, error: median", f"{statistics.median(errors):.1%} of {len(errors)}"],
        ["predicted seconds, error: p95", f"{quantile(errors, 0.95):.1%}"],
        ["predicted / real, median", f"{statistics.median(_ratios(asked)):.2f}"],
        ["refused with Retry-After", f"{len(told)}"],
        ["of these, accepted on their return at that time", f"{back} ({back / len(told):.0%})" if told else "-"],
    ]


def _ratios(asked: list[Asked]) -> list[float]:
    return [one.predicted_s / one.real_s for one in asked if one.predicted_s is not None and one.real_s]


def _draw(asked: list[Asked], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5.5), layout="constrained")
    points = [
        (one.real_s, one.predicted_s, one.caller)
        for one in asked
        if one.real_s is not None and one.predicted_s is not None
    ]
    most = 1.05 * max(max(real, predicted) for real, predicted, _ in points)
    axes.plot([0, most], [0, most], color="0.6", lw=1)
    axes.fill_between([0, most], [0, most / 2], [0, 1.5 * most], color="0.93", label="within 50 %")
    for caller in CALLERS:
        real, predicted = ([point[k] for point in points if point[2] == caller] for k in (0, 1))
        axes.scatter(real, predicted, s=18, label=caller)
    axes.set(xlim=(0, most), ylim=(0, most), xlabel="seconds until the image", ylabel="seconds predicted on admission")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
