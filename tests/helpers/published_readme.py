"""The examples in the README of cache-dit v0.1 and v0.2, call for call and value for value, and a way to run them.

Only the package of the import differs. The text around the calls is not theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import DiffusionPipeline, FluxPipeline

__all__ = ["APPLIED", "COMPILED", "PARALLEL", "PIECES", "run_snippet"]

_LOAD = """
from diffusers import FluxPipeline
from cache_core.cache_factory import apply_cache_on_pipe, CacheType

pipe = FluxPipeline.from_pretrained(
    "black-forest-labs/FLUX.1-dev",
    torch_dtype=torch.bfloat16,
).to("cuda")
"""
_APPLY = "\napply_cache_on_pipe(pipe, **cache_options)\n"

#: Complete examples that apply a cache, with the options that must then be in force.
APPLIED: dict[str, tuple[str, dict[str, Any]]] = {
    "DBCache, default": (
        _LOAD + "cache_options = CacheType.default_options(CacheType.DBCache)" + _APPLY,
        {"type": "DBCache", "Fn_compute_blocks": 8, "Bn_compute_blocks": 8, "warmup_steps": 8,
         "residual_diff_threshold": 0.12, "max_cached_steps": -1},
    ),
    "DBCache, custom F8B16": (
        _LOAD
        + """
cache_options = {
    "cache_type": CacheType.DBCache,
    "warmup_steps": 8,
    "max_cached_steps": 8,
    "Fn_compute_blocks": 8,
    "Bn_compute_blocks": 16,
    "residual_diff_threshold": 0.12,
}
"""
        + _APPLY,
        {"type": "DBCache", "Fn_compute_blocks": 8, "Bn_compute_blocks": 16, "warmup_steps": 8,
         "residual_diff_threshold": 0.12, "max_cached_steps": 8},
    ),
    "FBCache, default": (
        _LOAD + "cache_options = CacheType.default_options(CacheType.FBCache)" + _APPLY,
        {"type": "FBCache", "warmup_steps": 8, "residual_diff_threshold": 0.08, "max_cached_steps": 8},
    ),
    "DBCache, as FBCache": (
        _LOAD
        + """
cache_options = {
    "cache_type": CacheType.DBCache,
    "warmup_steps": 8,
    "max_cached_steps": 8,
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "residual_diff_threshold": 0.12,
}
"""
        + _APPLY,
        {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_cached_steps": 8},
    ),
    "DBPrune, default": (
        _LOAD + "cache_options = CacheType.default_options(CacheType.DBPrune)" + _APPLY,
        {"type": "DBPrune", "Fn_compute_blocks": 8, "Bn_compute_blocks": 8, "warmup_steps": 8,
         "residual_diff_threshold": 0.08, "max_pruned_steps": -1},
    ),
    "DBPrune, custom": (
        _LOAD
        + """
cache_options = {
    "cache_type": CacheType.DBPrune,
    "residual_diff_threshold": 0.05,
    "Fn_compute_blocks": 8,
    "Bn_compute_blocks": 8,
    "warmup_steps": 8,
    "max_pruned_steps": 12,
    "enable_dynamic_prune_threshold": True,
    "max_dynamic_prune_threshold": 2 * 0.05,
    "dynamic_prune_threshold_relax_ratio": 1.25,
    "residual_cache_update_interval": 1,
    "non_prune_blocks_ids": [],
}
"""
        + _APPLY,
        {"type": "DBPrune", "max_pruned_steps": 12, "enable_dynamic_prune_threshold": True,
         "max_dynamic_prune_threshold": 0.1, "residual_diff_threshold": 0.05},
    ),
    "DBCache, as its benchmark": (
        _LOAD
        + """
cache_options = {
    "cache_type": CacheType.type("DBCache"),
    "warmup_steps": 0,
    "max_cached_steps": -1,
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 4,
    "max_Fn_compute_blocks": 19,
    "max_Bn_compute_blocks": 38,
    "Fn_compute_blocks_ids": [],
    "Bn_compute_blocks_ids": CacheType.range(0, 4, 2),
    "non_compute_blocks_diff_threshold": 0.08,
    "residual_diff_threshold": 0.08,
    "enable_alter_cache": False,
    "alter_residual_diff_threshold": 0.08,
    "l1_hidden_states_diff_threshold": None,
    "important_condition_threshold": 0.00,
    "enable_taylorseer": False,
    "enable_encoder_taylorseer": False,
    "taylorseer_cache_type": "residual",
    "taylorseer_kwargs": {"n_derivatives": 2},
}
"""
        + _APPLY,
        {"type": "DBCache", "Bn_compute_blocks_ids": (0, 2, 3), "warmup_steps": 0, "taylor_order": 0},
    ),
    "DBPrune, as its benchmark": (
        _LOAD
        + """
cache_options = {
    "cache_type": CacheType.type("DBPrune"),
    "residual_diff_threshold": 0.08,
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "warmup_steps": 0,
    "max_pruned_steps": -1,
    "important_condition_threshold": 0.00,
    "enable_dynamic_prune_threshold": True,
    "max_dynamic_prune_threshold": 2 * 0.08,
    "dynamic_prune_threshold_relax_ratio": 1.25,
    "residual_cache_update_interval": 1,
    "non_prune_blocks_ids": CacheType.range(0, 10 + 18, 4),
}
"""
        + _APPLY,
        {"type": "DBPrune", "non_prune_blocks_ids": (0, 4, 8, 12, 16, 20, 24, 27), "max_dynamic_prune_threshold": 0.16},
    ),
}  # fmt: skip

#: Examples that only name options; applied unchanged.
PIECES: dict[str, tuple[str, dict[str, Any]]] = {
    "partial Bn": (
        """
cache_options = {
    "Bn_compute_blocks_ids": CacheType.range(0, 16, 2),
    "non_compute_blocks_diff_threshold": 0.08,
}
""",
        {"type": "DBCache", "Fn_compute_blocks": 8, "Bn_compute_blocks": 16,
         "Bn_compute_blocks_ids": (0, 2, 4, 6, 8, 10, 12, 14, 15), "non_compute_blocks_diff_threshold": 0.08},
    ),
    "TaylorSeer": (
        """
cache_options = {
    "enable_taylorseer": True,
    "enable_encoder_taylorseer": True,
    "taylorseer_cache_type": "residual",
    "taylorseer_kwargs": {
        "n_derivatives": 2,
    },
    "warmup_steps": 3,
    "residual_diff_threshold": 0.12,
}
""",
        {"type": "DBCache", "taylor_order": 2, "warmup_steps": 3, "residual_diff_threshold": 0.12},
    ),
    "CFG": (
        """
cache_options = {
    "do_separate_classifier_free_guidance": True,
    "cfg_compute_first": False,
    "cfg_diff_compute_separate": True,
}
""",
        {"type": "DBCache", "Fn_compute_blocks": 8, "Bn_compute_blocks": 8, "residual_diff_threshold": 0.12},
    ),
}  # fmt: skip

COMPILED = (
    """
apply_cache_on_pipe(
    pipe, **CacheType.default_options(CacheType.DBPrune)
)
pipe.transformer = torch.compile(pipe.transformer)
""",
    """
torch._dynamo.config.recompile_limit = 96
torch._dynamo.config.accumulated_recompile_limit = 2048
""",
)

PARALLEL = """
import torch.distributed as dist
from diffusers import FluxPipeline
from para_attn.context_parallel import init_context_parallel_mesh
from para_attn.context_parallel.diffusers_adapters import parallelize_pipe
from cache_core.cache_factory import apply_cache_on_pipe, CacheType

dist.init_process_group()
torch.cuda.set_device(dist.get_rank())

pipe = FluxPipeline.from_pretrained(
    "black-forest-labs/FLUX.1-dev",
    torch_dtype=torch.bfloat16,
).to("cuda")

parallelize_pipe(
    pipe, mesh=init_context_parallel_mesh(
        pipe.device.type, max_ulysses_dim_size=4
    )
)

apply_cache_on_pipe(
    pipe, **CacheType.default_options(CacheType.DBPrune)
)
"""


def run_snippet(source: str, folder: Path, **names: Any) -> dict[str, Any]:
    """Run an example with the model in ``folder``, on the CPU; returns the names that it defines."""
    real = FluxPipeline.from_pretrained

    def tiny(*_: Any, **__: Any) -> FluxPipeline:
        pipe = real(folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    space = {"torch": torch, **names}
    with (
        mock.patch.object(FluxPipeline, "from_pretrained", tiny),
        mock.patch.object(DiffusionPipeline, "to", lambda self, *_: self),
        mock.patch("torch.cuda.set_device"),
        mock.patch("torch.distributed.init_process_group"),
    ):
        exec(compile(source, "published README", "exec"), space)
    return space
