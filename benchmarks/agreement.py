"""Counts all-reduces per decision: each method in a process group of one rank, treated as parallelized."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.contenders import contenders
from benchmarks.workload import Schedule, flux, sharing_weights

__all__ = ["agreement_rows", "para_attention_first_block_cache"]


def agreement_rows(threshold: float, steps: int = 6) -> list[tuple[str, str, str, str]]:
    """(kind, method, decisions, all-reduces per decision) for every contender."""
    size: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    model = flux(doubles=2, singles=4, heads=2, head_dim=64, **size)
    schedule = Schedule(steps, tokens=64, text=16, **size, jump=False)
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    calls: Counter[str] = Counter()
    original = dist.all_reduce

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls["all_reduce"] += 1
        return original(*args, **kwargs)

    rows = []
    try:
        dist.all_reduce = counting
        rivals = contenders(first=1, last=1, threshold=threshold, steps=steps, group=dist.group.WORLD)
        for contender in rivals[2:]:
            twin = sharing_weights(model)
            vars(twin)["_is_parallelized"] = True
            image = contender.prepare(twin)
            calls.clear()
            with image():
                schedule.run(twin)
            # Every step except the first decides: once, or (prune) once for each block except the first.
            decisions = (steps - 1) * (5 if contender.kind == "prune" else 1)
            rows.append((contender.kind, contender.name, str(decisions), f"{calls['all_reduce'] / decisions:.1f}"))
    finally:
        dist.all_reduce = original
        dist.destroy_process_group()
    return rows


def para_attention_first_block_cache() -> str:
    """Whether ParaAttention's own first-block cache runs with the installed diffusers; if not, its error."""
    model = flux(doubles=2, singles=4, heads=2, head_dim=64, dtype=torch.float32, device="cpu")
    try:
        from para_attn.first_block_cache import utils
        from para_attn.first_block_cache.diffusers_adapters.flux import apply_cache_on_transformer

        apply_cache_on_transformer(model)
        with utils.cache_context(utils.create_cache_context(residual_diff_threshold=0.1)):
            Schedule(2, tokens=64, text=16, dtype=torch.float32, device="cpu").run(model)
    except Exception as error:
        return f"does not run with this diffusers: {type(error).__name__}: {error}"
    return "runs with this diffusers"
