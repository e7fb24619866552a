"""What serving adds to an image at concurrency 1, in milliseconds.

    python -m benchmarks.overhead [--config serve_configs/laptop_two_ranks.yaml] [--out overhead.md]

The time of a request over HTTP, minus the seconds that rank 0 spent in the same pipeline call (encode, denoise and
decode, by its own timing), minus the time of encoding the image as PNG.
"""

from __future__ import annotations

import base64
import io
import statistics
import time
from pathlib import Path

import httpx
import numpy as np
import typer
from PIL import Image

from benchmarks.report import machine, quartiles, show_table
from benchmarks.serving import PATH, application, settings_of
from raycache.protocol.formats import encode

COLUMNS = ["reply", "request, ms", "in the gang, ms", "PNG encoding, ms", "serving overhead, ms: median (quartiles)"]


def main(
    config: Path = typer.Option(Path("serve_configs/laptop_two_ranks.yaml"), help="the application's settings"),
    size: str = typer.Option("128x128", help="image size"),
    steps: int = typer.Option(4, help="denoising steps"),
    rounds: int = typer.Option(40, help="requests per row"),
    tiny: bool = typer.Option(False, help="use a model of 2 + 4 blocks instead of the configured one"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table."""
    settings = settings_of(config, tiny, warmup=[{"size": size}])
    rows = []
    with application(settings) as url, httpx.Client(base_url=url, timeout=300) as client:
        body = {"prompt": "a red circle", "seed": 7, "size": size, "num_inference_steps": steps}
        for name, accept in {"JSON with base64": "application/json", "raw PNG": "image/png"}.items():
            rows.append([name, *_measure(client, body, accept, rounds)])
    title = f"{config.name}, {size}, {steps} steps, concurrency 1; {machine()}"
    show_table(title, COLUMNS, rows, out)


def _measure(client: httpx.Client, body: dict[str, object], accept: str, rounds: int) -> list[str]:
    totals, gangs, encodings, overheads = [], [], [], []
    for number in range(rounds + 3):
        began = time.perf_counter()
        reply = client.post(PATH, json=body, headers={"accept": accept})
        total = 1000 * (time.perf_counter() - began)
        reply.raise_for_status()
        if accept == "image/png":
            # Server-Timing: queue;dur=1.0, encode;dur=...
            parts = dict(part.strip().split(";dur=") for part in reply.headers["server-timing"].split(","))
            gang = sum(float(parts[stage]) for stage in ("encode", "denoise", "decode"))
            data = reply.content
        else:
            answer = reply.json()
            gang = 1000 * sum(answer["times"][stage] for stage in ("encode", "denoise", "decode"))
            data = base64.b64decode(answer["data"][0]["b64_json"])
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        began = time.perf_counter()
        encode(pixels, "png", 100)
        encoding = 1000 * (time.perf_counter() - began)
        if number >= 3:  # the first ones warm up connections and caches
            totals.append(total)
            gangs.append(gang)
            encodings.append(encoding)
            overheads.append(total - gang - encoding)
    medians = [f"{statistics.median(values):.1f}" for values in (totals, gangs, encodings)]
    return [*medians, quartiles(overheads, 1)]


if __name__ == "__main__":
    typer.run(main)
