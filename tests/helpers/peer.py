"""Runs cache-dit 1.5.3 over a grid of cases in a separate process, because it patches classes and reads variables.

    python -m tests.helpers.peer < cases.json > results.pt

A case is ``{"options": {...}, "job": {...}}`` with the options under our names.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

os.environ["CACHE_DIT_FLUX_ENABLE_DUMMY_BLOCKS"] = "1"  # FLUX as one list of blocks, as first published
os.environ["CACHE_DIT_LOG_LEVEL"] = "ERROR"

import torch

from tests.helpers.tiny_flux import Job, draw, tiny_flux


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    import cache_dit

    options = dict(case["options"])
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=options.get("Fn_compute_blocks", 1),
        Bn_compute_blocks=options.get("Bn_compute_blocks", 0),
        max_warmup_steps=options["warmup_steps"],
        max_cached_steps=options["max_cached_steps"],
        max_continuous_cached_steps=options["max_continuous_cached_steps"],
        residual_diff_threshold=options["residual_diff_threshold"],
    )
    transformer = tiny_flux()
    cache_dit.enable_cache(transformer, cache_config=config)
    outputs = draw(transformer, Job(**{**case["job"], "seeds": tuple(case["job"]["seeds"])}))
    context = transformer._context_manager.get_context()
    return {
        "outputs": outputs,
        "cached_steps": list(context.get_cached_steps()),
        "differences": {int(step): float(value) for step, value in context.get_residual_diffs().items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    real_stdout = os.dup(1)
    os.dup2(2, 1)  # so that what the peer prints does not mix with the results
    results = [run_case(case) for case in json.load(sys.stdin)]
    buffer = io.BytesIO()
    torch.save(results, buffer)
    with os.fdopen(real_stdout, "wb") as out:
        out.write(buffer.getvalue())
