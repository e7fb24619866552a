"""The memory that a session keeps between steps with FLUX.1-dev's geometry, 1024 x 1024, bfloat16."""

from __future__ import annotations

import torch

from benchmarks.workload import Geometry, Schedule, Tokens, flux_with_free_blocks
from cache_core import DBCacheOptions, DBPruneOptions
from cache_core.opening import job_session
from cache_core.options import CacheOptions
from cache_core.ownership import opened

__all__ = ["memory_rows"]


def memory_rows(device: str) -> list[tuple[str, ...]]:
    """Method, GiB that our session keeps between steps, GiB that the published implementation keeps."""
    size = Geometry(doubles=19, singles=38, heads=24, head_dim=128, dtype=torch.bfloat16)
    tokens = Tokens(tokens=4096, text=512)
    schedule = Schedule(2, **tokens, dtype=torch.bfloat16, device=device, jump=False)
    image, text = (count * 3072 * 2 for count in (tokens["tokens"], tokens["text"]))
    rows: list[tuple[str, ...]] = []

    def held_with(options: CacheOptions) -> int:
        model = flux_with_free_blocks(**size, **tokens, device=device)
        with job_session(model, options) as session, opened(model, session):
            schedule.run(model)
            return session.bytes_held()

    for first, last in ((0, 0), (8, 8)):
        held = held_with(DBPruneOptions(Fn_compute_blocks=first, Bn_compute_blocks=last, warmup_steps=2))
        # Published: input and residual of every block, even of those that are never pruned.
        published = 19 * (2 * image + text) + 38 * 2 * (image + text)
        rows.append((f"DBPrune F{first}B{last}", f"{held / 2**30:.2f}", f"{published / 2**30:.2f}"))
    held = held_with(DBCacheOptions(warmup_steps=2))
    rows.append(("DBCache F8B8", f"{held / 2**30:.2f}", f"{(2 * image + text) / 2**30:.2f}"))
    return rows
