"""cache-dit on a FLUX transformer, with the block layout of its published figures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from diffusers.models import FluxTransformer2DModel


def enable_cache_dit(
    transformer: FluxTransformer2DModel,
    *,
    prune: bool,
    first: int,
    last: int,
    steps: int,
    warmup: int,
    order: int = 0,
    mask: Sequence[int] | None = None,
) -> Callable[[float], None]:
    """Put cache-dit's DBCache, or DBPrune, on ``transformer``.

    Args:
        transformer: a FLUX transformer.
        prune: DBPrune instead of DBCache.
        first, last: Fn and Bn.
        steps: transformer calls of one image.
        warmup: number of first steps that are always computed.
        order: order of its TaylorSeer; 0 = none.
        mask: its SCM: 1 for each step that is computed; the others reuse. None = decide by threshold.

    Returns:
        A function that prepares it for the next image with a threshold; to be called before each image.
    """
    cache_dit, adapter = _laid_out(transformer)
    kind = cache_dit.DBPruneConfig if prune else cache_dit.DBCacheConfig
    chosen: dict[str, Any] = {
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": last,
        "max_warmup_steps": warmup,
        "num_inference_steps": steps,
    }
    if mask is not None:
        chosen |= {"steps_computation_mask": list(mask), "steps_computation_policy": "static"}
    forecast = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    cache_dit.enable_cache(
        adapter,
        cache_config=kind(residual_diff_threshold=0.1, **chosen),
        calibrator_config=forecast,
    )

    def refresh(threshold: float) -> None:
        config = kind().reset(residual_diff_threshold=threshold, **chosen)
        calibrator = {"calibrator_config": forecast} if forecast else {}
        cache_dit.refresh_context(transformer, cache_config=config, **calibrator)

    return refresh


def _laid_out(transformer: FluxTransformer2DModel) -> tuple[Any, Any]:
    """cache-dit, with its log silenced, and the transformer in the form that it accepts."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")
    import cache_dit
    from cache_dit.caching.patch_functors import FluxPatchFunctor

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("cache_dit"):
            logging.getLogger(name).setLevel(logging.ERROR)
    # One list of all blocks: the layout of cache-dit's published FLUX figures, and the one comparable to ours.
    adapter = cache_dit.BlockAdapter(
        transformer=transformer,
        blocks=transformer.transformer_blocks + transformer.single_transformer_blocks,
        blocks_name="transformer_blocks",
        dummy_blocks_names=["single_transformer_blocks"],
        patch_functor=FluxPatchFunctor(),
        forward_pattern=cache_dit.ForwardPattern.Pattern_1,
    )
    return cache_dit, adapter
