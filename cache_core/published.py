"""Options as cache-dit published them (v0.1 and v0.2), translated to those of this implementation.

Options that have no effect here are dropped. Options that would change the image but are not implemented are refused
with the reason, because ignoring them silently would produce a different image from the one requested.
"""

from __future__ import annotations

from typing import Any

from cache_core.cache_type import CacheType

__all__ = ["translated", "with_published_defaults"]

#: Published options that this implementation does not have, with the only value that changes nothing.
_NEUTRAL: dict[str, Any] = {
    "downsample_factor": 1,
    "enable_alter_cache": False,
    "l1_hidden_states_diff_threshold": None,
    "important_condition_threshold": 0.0,
    "Fn_compute_blocks_ids": [],
    "shallow_patch": False,
    "cfg_diff_compute_separate": True,
    "type": None,
}
_REASONS = {
    "downsample_factor": "sums are exact over all channels, at the cost of one pass over memory",
    "enable_alter_cache": "cond and uncond are kept apart by diffusers' cache_context, each with its own decisions",
    "l1_hidden_states_diff_threshold": "the residual is compared, not the state",
    "important_condition_threshold": "means over chosen tokens are not exact over uneven shards",
    "Fn_compute_blocks_ids": "it dropped blocks from the model",
    "shallow_patch": "there is no patch of the pipeline without its transformer",
    "cfg_diff_compute_separate": "cond and uncond are always decided separately",
    "type": "the method is given as cache_type",
}
#: Published options that only bounded others, tuned features that are now off, or switch on what is always on.
_IGNORED = {
    "max_Fn_compute_blocks",
    "max_Bn_compute_blocks",
    "alter_residual_diff_threshold",
    "num_inference_steps",
    "do_separate_cfg",
    "do_separate_classifier_free_guidance",
    "enable_separate_cfg",
    "cfg_compute_first",
}
_TAYLORSEER = (
    "enable_taylorseer",
    "enable_encoder_taylorseer",
    "taylorseer_cache_type",
    "taylorseer_kwargs",
    "taylorseer_order",
)
#: ``taylorseer_kwargs`` that had no effect when published: the cache decided which steps to compute.
_TAYLORSEER_IGNORED = {"warmup_steps", "max_warmup_steps", "skip_interval_steps"}
_MAX_ORDER = 2

#: The defaults of the published ``apply_cache_on_pipe`` for options left out of a user's dict.
_LEFT_OUT: dict[CacheType, dict[str, Any]] = {
    CacheType.NONE: {},
    CacheType.FBCache: {"residual_diff_threshold": 0.05, "warmup_steps": 0, "max_cached_steps": -1},
    CacheType.DBCache: {
        "residual_diff_threshold": 0.05,
        "warmup_steps": 0,
        "max_cached_steps": -1,
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
    },
    CacheType.DBPrune: {"residual_diff_threshold": 0.05, "warmup_steps": 0, "max_pruned_steps": -1},
    CacheType.ForecastCache: {},
    CacheType.BudgetCache: {},
    CacheType.ScheduleCache: {},
}


def translated(options: dict[str, Any]) -> dict[str, Any]:
    """Published options as options of this implementation; unknown names are left as they are.

    Raises:
        ValueError: an unsupported option with a value that is not neutral; says why and what to use instead.
    """
    kept: dict[str, Any] = {}
    for name, value in options.items():
        if name in _NEUTRAL:
            neutral = _NEUTRAL[name]
            if value not in (neutral, None) and (value or neutral):
                raise ValueError(f"{name}={value!r} is not supported: {_REASONS[name]}; leave it at {neutral!r}")
        elif name not in _IGNORED and name not in _TAYLORSEER:
            kept[name] = value
    if kept.get("warmup_steps") == -1:  # published for "none", as no step's number is below it
        kept["warmup_steps"] = 0
    order = _taylor_order(options)
    if order is not None and kept.setdefault("taylor_order", order) != order:
        raise ValueError(
            f"enable_taylorseer with n_derivatives={order} contradicts taylor_order={kept['taylor_order']}; "
            "give one of them"
        )
    return kept


def with_published_defaults(options: dict[str, Any], cache_type: CacheType | None) -> dict[str, Any]:
    """Options, with missing ones filled in as the published ``apply_cache_on_pipe`` did.

    Args:
        options: published names.
        cache_type: None means not given: the options published for DBCache, overridden by these.
    """
    if cache_type is None:
        base = CacheType.default_options(CacheType.DBCache)
        del base["cache_type"]
    else:
        base = _LEFT_OUT[cache_type]
    filled = base | options
    # The README's example gives ids for F8B16 without setting B16.
    if (ids := options.get("Bn_compute_blocks_ids")) and "Bn_compute_blocks" not in options:
        filled["Bn_compute_blocks"] = max(filled["Bn_compute_blocks"], max(ids) + 1)
    return filled


def _taylor_order(options: dict[str, Any]) -> int | None:
    """The forecast's order that the TaylorSeer options request; None if they request none."""
    if not options.get("enable_taylorseer"):
        if options.get("enable_encoder_taylorseer"):
            raise ValueError(
                "enable_encoder_taylorseer=True without enable_taylorseer is not supported: the text stream is "
                "forecast together with the image; set both, or taylor_order=1 or 2"
            )
        return None
    if options.get("taylorseer_cache_type", "residual") not in ("residual", None):
        raise ValueError(
            f"taylorseer_cache_type={options['taylorseer_cache_type']!r} is not supported: the forecast is of the "
            "blocks' residual, not of the state; use 'residual'"
        )
    more = dict(options.get("taylorseer_kwargs") or {})
    named = options.get("taylorseer_order")  # from v0.2.16 on
    order = more.pop("n_derivatives", _MAX_ORDER if named is None else named)
    if unknown := sorted(set(more) - _TAYLORSEER_IGNORED):
        raise ValueError(f"taylorseer_kwargs has no {unknown[0]!r}; it has n_derivatives")
    if order not in range(_MAX_ORDER + 1):
        raise ValueError(
            f"taylorseer_kwargs: n_derivatives={order!r} is not supported: the forecast goes to order {_MAX_ORDER}; "
            f"nearest legal value: {_MAX_ORDER}"
        )
    return int(order)
