"""cache-dit on a FLUX transformer, laid out as in its published figures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from diffusers.models import FluxTransformer2DModel


def enable_cache_dit(
    transformer: FluxTransformer2DModel, *, prune: bool, first: int, last: int, steps: int, warmup: int
) -> Callable[[float], None]:
    """Put cache-dit's DBCache, or DBPrune, on ``transformer``.

    Args:
        transformer: what gets it.
        prune: DBPrune instead of DBCache.
        first, last: Fn and Bn.
        steps: transformer calls of one image.
        warmup: first steps that are always computed.

    Returns:
        What makes it ready for the next image, at a threshold: to be called before each.
    """
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")
    import cache_dit
    from cache_dit.caching.patch_functors import FluxPatchFunctor

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("cache_dit"):
            logging.getLogger(name).setLevel(logging.ERROR)
    kind = cache_dit.DBPruneConfig if prune else cache_dit.DBCacheConfig
    chosen = {
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": last,
        "max_warmup_steps": warmup,
        "num_inference_steps": steps,
    }
    # One list of all blocks: the layout behind cache-dit's published FLUX figures, and the one comparable to ours.
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=transformer,
            blocks=transformer.transformer_blocks + transformer.single_transformer_blocks,
            blocks_name="transformer_blocks",
            dummy_blocks_names=["single_transformer_blocks"],
            patch_functor=FluxPatchFunctor(),
            forward_pattern=cache_dit.ForwardPattern.Pattern_1,
        ),
        cache_config=kind(residual_diff_threshold=0.1, **chosen),
    )

    def refresh(threshold: float) -> None:
        config = kind().reset(residual_diff_threshold=threshold, **chosen)
        cache_dit.refresh_context(transformer, cache_config=config)

    return refresh
