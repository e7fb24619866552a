"""cache-dit v0.1's entry point under its own name: its README works if only the package of the import is changed.

    from cache_core.cache_factory import apply_cache_on_pipe, CacheType

It differs from ``cache_core.apply_cache_on_pipe`` in one point: options that are not given have the published defaults
(threshold 0.05, no warm-up, F1B0) instead of those of the options models (0.12, 8, F8B8).
"""

from __future__ import annotations

import logging
from typing import Any

from diffusers import DiffusionPipeline

from cache_core import pipe as _pipe
from cache_core.cache_type import CacheType
from cache_core.published import with_published_defaults

__all__ = ["CacheType", "apply_cache_on_pipe"]

_logger = logging.getLogger(__name__)


def apply_cache_on_pipe(
    pipe: DiffusionPipeline, cache_type: CacheType | str | None = None, **options: Any
) -> DiffusionPipeline:
    """Cache every later call of ``pipe``, with the published defaults of options that are not given.

    Args:
        pipe: a diffusers pipeline.
        cache_type: the method; None = DBCache with ``CacheType.default_options``, with ``options`` on top.
        options: as for :func:`cache_core.apply_cache_on_pipe`. Defaults: ``residual_diff_threshold`` 0.05,
            ``warmup_steps`` 0, no limit of steps; DBCache F1B0, DBPrune F8B8. ``Bn_compute_blocks_ids`` without
            ``Bn_compute_blocks``: as many Bn blocks as the ids reach.

    Returns:
        The same pipeline object.

    Raises:
        As :func:`cache_core.apply_cache_on_pipe`.
    """
    if cache_type is None:
        _logger.warning(
            "no cache_type given: using DBCache with defaults for what is not given. Pass cache_type to be sure"
        )
    method = None if cache_type is None else CacheType(cache_type)
    return _pipe.apply_cache_on_pipe(pipe, method or CacheType.DBCache, **with_published_defaults(options, method))
