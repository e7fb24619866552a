"""A transformer split over the ranks of its gang, checked against its output on one rank, and its process group."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch.distributed as dist
from torch import nn

from cache_core import find_group
from raycache.models.roads import WHOLE, splits_unevenly
from raycache.worker.split_check import call_alone, check_split
from raycache.worker.split_roads import SPLITS

__all__ = ["parallelize"]

_logger = logging.getLogger("raycache.rank")
# diffusers calls what torch has renamed; nobody who serves images can help it.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.hooks\.context_parallel")


def parallelize(transformer: nn.Module, family: str = "") -> dist.ProcessGroup:
    """Split the transformer's tokens over all ranks of the default group with Ulysses attention.

    Args:
        family: the model's, for errors.

    Returns:
        The context-parallel group, whose ranks decide together.

    Raises:
        ValueError: nothing is known of how to split this class, or its attention heads are too few, or do not divide
            among the ranks where they must.
        SplitWrong: what all ranks compute together is not what one computes.
    """
    world, name = dist.get_world_size(), type(transformer).__name__
    split = SPLITS.get(name)
    if split is None:
        why = WHOLE.get(name, "no way is known that keeps it right")
        raise ValueError(
            f"{name} cannot be split over {world} ranks: {why}. Use one rank "
            f"(parallel.ranks_per_replica: 1), or one of {', '.join(SPLITS)}"
        )
    heads = _heads(transformer)
    if heads % world and not splits_unevenly(name):
        raise ValueError(f"{heads} attention heads do not divide among {world} ranks; use a divisor of {heads}")
    if heads < world:
        raise ValueError(f"{heads} attention heads are fewer than {world} ranks; use at most {heads}")
    alone = call_alone(transformer, world)
    split(transformer)
    group = find_group(transformer)
    assert group is not None
    difference = check_split(transformer, alone, group, family or name)
    _logger.info("%s over %d ranks: %.1e from one rank", name, world, difference)
    return group


def _heads(transformer: nn.Module) -> int:
    config: Any = transformer.config  # diffusers types it as a dict, and reads its attributes
    if hasattr(config, "n_heads"):
        return int(config.n_heads)
    heads = int(config.num_attention_heads)
    return min(heads, int(getattr(config, "audio_num_attention_heads", heads)))
