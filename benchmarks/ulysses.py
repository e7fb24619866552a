"""Query, key and value in one all-to-all instead of ParaAttention's three: a call of FLUX's 57 blocks, in turns.

    python -m benchmarks.ulysses [--ranks 2] [--ranks 4] [--out TABLE.md]

The results are bit-equal; only messages differ. Ranks are gloo processes on this machine.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import typer
from rich.progress import track

from benchmarks.report import machine, quartiles, show_table
from benchmarks.workload import Schedule, flux

COLUMNS = ["ranks", "width x tokens", "three all-to-alls, s", "one, s", "ratio: median (quartiles)"]
SIZES = {"128 x (64 + 16)": (4, 32, 64, 16), "512 x (256 + 64)": (8, 64, 256, 64)}
"""Heads, channels per head, image tokens and text tokens."""


def main(
    ranks: list[int] = typer.Option([2, 4], help="gloo ranks; repeat for more"),
    rounds: int = typer.Option(8, help="calls of each kind"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table."""
    rows = []
    for world in ranks:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_rank, (world, rounds, folder), nprocs=world)
            rows += torch.load(Path(folder) / "rows.pt")
    show_table(f"One transformer call of 19 + 38 blocks, float32; {machine()}", COLUMNS, rows, out)


def _rank(rank: int, world: int, rounds: int, folder: str) -> None:
    from para_attn import para_attn_interface as interface

    from cache_core import para_attention
    from raycache.worker.context_parallel import parallelize

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    together = para_attention.gather_heads

    def apart(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *qkv, mesh = states
        return tuple(interface._sdpa_input_all_to_all(part, mesh) for part in qkv)

    rows: list[list[str]] = []
    for size, (heads, head_dim, tokens, text) in SIZES.items():
        shape: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        model = flux(doubles=19, singles=38, heads=heads, head_dim=head_dim, **shape)
        schedule = Schedule(1, tokens=tokens, text=text, **shape, jump=False)
        parallelize(model)
        seconds: dict[Any, list[float]] = {apart: [], together: []}
        for number in track(range(rounds + 1), f"{world} ranks, {size}", disable=rank > 0):
            for way, seen in seconds.items():
                para_attention.gather_heads = way
                dist.barrier()
                began = time.perf_counter()
                schedule.run(model)
                if number:  # the first round includes allocation
                    seen.append(time.perf_counter() - began)
        three, one = seconds[apart], seconds[together]
        ratios = [a / b for a, b in zip(three, one, strict=True)]
        figures = [f"{statistics.median(three):.3f}", f"{statistics.median(one):.3f}"]
        rows.append([str(world), size, *figures, quartiles(ratios)])
    if rank == 0:
        torch.save(rows, Path(folder) / "rows.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
