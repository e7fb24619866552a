"""What caching costs compared with what it saves: our methods and their peers, in one run, with the same decisions.

    python -m benchmarks.cache_overhead [--device cuda] [--flux-dev] [--out TABLE.md]

*Efficiency* = measured speed-up / ideal speed-up, where the ideal counts only the time of the blocks that were still
computed (and of everything around the blocks). On CPU the blocks are timed in the measured image itself, so that a
machine of varying speed slows both sides of the ratio; on CUDA, where timing each block would drain the queue, the
blocks' time is that of the uncached image of the same round. *Cost per decision* is measured with blocks that cost
nothing, at FLUX.1-dev's activation size: everything a method adds (hooks, sums, agreement and reuse) divided by its
decisions. Contenders take turns in every round. The CPU clock is this process's CPU time on one thread, which other
processes disturb least; on CUDA it is wall time around a synchronised image.
"""

from __future__ import annotations

import functools
import gc
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.agreement import agreement_rows, para_attention_first_block_cache
from benchmarks.contenders import Contender, contenders
from benchmarks.memory import memory_rows
from benchmarks.report import Table, processor, quartiles, write
from benchmarks.workload import Geometry, Schedule, Tokens, flux, flux_with_free_blocks, sharing_weights
from cache_core.blocks import find_blocks

THRESHOLD = 0.15
#: (model, tokens, steps). Two widths, because a block's work grows with the square of the width, a decision's only
#: linearly.
_SMALL = (
    (
        Geometry(doubles=6, singles=12, heads=6, head_dim=64, dtype=torch.float32),
        Tokens(tokens=256, text=64),
        8,
    ),
    (
        Geometry(doubles=3, singles=6, heads=16, head_dim=64, dtype=torch.float32),
        Tokens(tokens=128, text=32),
        8,
    ),
)
_FLUX_DEV = (
    (
        Geometry(doubles=19, singles=38, heads=24, head_dim=128, dtype=torch.bfloat16),
        Tokens(tokens=4096, text=512),
        28,
    ),
)


@dataclass
class Entry:
    """One contender on one model, and its measurements.

    Attributes:
        blocks: block calls of one image, by class.
        block_seconds: seconds spent in them; on CUDA only without a cache, where timing disturbs nothing else.
        seconds, ideal: per round: an image's time, and what it would be if skipped blocks were the only difference.
        held: bytes alive after the last step because of the cache.
    """

    contender: Contender
    model: Any
    image: Any = None
    blocks: Counter[str] = field(default_factory=Counter)
    block_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: list[float] = field(default_factory=list)
    ideal: list[float] = field(default_factory=list)
    held: int = 0


def main(
    device: str = typer.Option("cpu", help="cpu or cuda"),
    flux_dev: bool = typer.Option(False, help="FLUX.1-dev in full, bf16, 1024x1024, 28 steps (needs a GPU with 30 GB)"),
    compiled: bool = typer.Option(False, help="compile each block's forward"),
    rounds: int = typer.Option(7, help="images per contender"),
    out: Path | None = typer.Option(None, help="also write the tables here, as Markdown"),
) -> None:
    """Print both tables."""
    torch.set_grad_enabled(False)
    if device == "cpu":
        torch.set_num_threads(1)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{processor()} (one thread)"
    about = f"Machine: {machine}, torch {torch.__version__}, {rounds} rounds, medians (quartiles)."
    tables = []
    for size, shape, steps in _FLUX_DEV if flux_dev else _SMALL:
        schedule = Schedule(steps, **shape, dtype=size["dtype"], device=device)
        first = min(8, size["doubles"] // 3)
        rivals = contenders(first=first, last=first, threshold=THRESHOLD, steps=steps)
        entries = _enter(flux(**size, device=device), rivals, compiled, device)
        _measure(entries, schedule, rounds, device, "real blocks")
        tables.append(_shown(_efficiency_table(entries, steps, size, shape)))
        del entries

    true = Geometry(doubles=4, singles=8, heads=24, head_dim=128, dtype=torch.bfloat16)
    tokens = Tokens(tokens=4096, text=512)
    steps = 6
    free = flux_with_free_blocks(**true, **tokens, device=device)
    schedule = Schedule(steps, **tokens, dtype=torch.bfloat16, device=device, jump=False)
    entries = _enter(free, contenders(first=2, last=2, threshold=THRESHOLD, steps=steps), False, device)
    _measure(entries, schedule, rounds, device, "free blocks")
    tables.append(_shown(_decision_table(entries, steps)))
    del entries, free
    header = ["kind", "method", "decisions", "all-reduces per decision (including abort checks)"]
    title = "Agreement: collectives of one rank, a decision in every step"
    tables.append(_shown(Table(title, header, agreement_rows(THRESHOLD))))
    peer = f"ParaAttention's own first_block_cache {para_attention_first_block_cache()}."
    Console().print(peer)
    title = "Memory kept between steps: FLUX.1-dev, 1024 x 1024, bfloat16, neighbours computed in the same step"
    tables.append(_shown(Table(title, ["method", "cache_core GiB", "published GiB"], memory_rows(device))))
    write(out, *tables, about=f"{about} {peer}")


def _shown(table: Table) -> Table:
    """Print a table as soon as it is complete, because a run takes long."""
    table.show()
    return table


def _enter(model: Any, candidates: list[Contender], compiled: bool, device: str) -> list[Entry]:
    entries = []
    for contender in candidates:
        entry = Entry(contender, sharing_weights(model))
        for block in (found.module for found in find_blocks(entry.model)):
            if compiled:
                block.forward = torch.compile(block.forward)
            wrap = _timing if device == "cpu" or contender.name == "no cache" else _counting
            block.forward = wrap(block.forward, type(block).__name__, entry, device)
        entry.image = contender.prepare(entry.model)
        entries.append(entry)
    return entries


def _counting(forward: Any, name: str, entry: Entry, device: str) -> Any:
    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        entry.blocks[name] += 1
        return forward(*args, **kwargs)

    return call


def _timing(forward: Any, name: str, entry: Entry, device: str) -> Any:
    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        start = _clock(device)
        output = forward(*args, **kwargs)
        entry.blocks[name] += 1
        entry.block_seconds[name] += _clock(device) - start
        return output

    return call


def _clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _measure(entries: list[Entry], schedule: Schedule, rounds: int, device: str, title: str) -> None:
    plain = entries[0]
    for entry in entries:  # warm up, and measure what one image holds
        before = _live_bytes()
        with entry.image():
            schedule.run(entry.model)
            entry.held = _live_bytes() - before
    for _ in track(range(rounds), description=title):
        for entry in entries:
            entry.blocks.clear()
            entry.block_seconds.clear()
            start = _clock(device)
            with entry.image():
                schedule.run(entry.model)
            entry.seconds.append(_clock(device) - start)
            entry.ideal.append(_ideal(entry, plain))


def _ideal(entry: Entry, plain: Entry) -> float:
    """Seconds of the last image if nothing but the computed blocks and the rest of the plain model took time."""
    around = plain.seconds[-1] - sum(plain.block_seconds.values())
    if entry.block_seconds:
        return around + sum(entry.block_seconds.values())
    return around + sum(entry.blocks[name] * plain.block_seconds[name] / count for name, count in plain.blocks.items())


def _live_bytes() -> int:
    """Bytes of all tensors alive, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _efficiency_table(entries: list[Entry], steps: int, size: Geometry, shape: Tokens) -> Table:
    plain = entries[0]
    total = sum(plain.blocks.values())
    rows = []
    for entry in entries:
        pairs = list(zip(entry.seconds, entry.ideal, plain.seconds, strict=True))
        rows.append(
            (
                entry.contender.kind,
                entry.contender.name,
                f"{sum(entry.blocks.values()) / total:.1%}",
                quartiles(entry.seconds),
                quartiles([base / seconds for seconds, _, base in pairs]),
                quartiles([base / ideal for _, ideal, base in pairs]),
                quartiles([ideal / seconds for seconds, ideal, _ in pairs], 3),
                f"{entry.held / 2**20:.1f}",
            )
        )
    width = size["heads"] * size["head_dim"]
    costs = ", ".join(
        f"{name} {plain.block_seconds[name] / count * 1e3:.1f} ms" for name, count in plain.blocks.items()
    )
    title = (
        f"Efficiency: {size['doubles']} + {size['singles']} blocks of width {width}, "
        f"{shape['tokens']} + {shape['text']} tokens, {size['dtype']}, {steps} steps; one block: {costs}"
    )
    header = ["kind", "method", "blocks computed", "seconds", "speed-up", "ideal", "efficiency", "MiB held"]
    return Table(title, header, rows)


def _decision_table(entries: list[Entry], steps: int) -> Table:
    total = sum(entries[0].blocks.values())
    rows = []
    for entry in entries[2:]:
        skipped_per_step = (total - sum(entry.blocks.values())) // (steps - 1)
        decisions = (steps - 1) * (skipped_per_step if entry.contender.kind == "prune" else 1)
        own = [1e6 * (seconds - ideal) / decisions for seconds, ideal in zip(entry.seconds, entry.ideal, strict=True)]
        rows.append((entry.contender.kind, entry.contender.name, str(decisions), quartiles(own, 0)))
    title = "Cost per decision: blocks that cost nothing, 4096 + 512 tokens of 3072 channels, bfloat16"
    return Table(title, ["kind", "method", "decisions", "microseconds per decision"], rows)


if __name__ == "__main__":
    typer.run(main)
