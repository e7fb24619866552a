"""A transformer split over the ranks of its gang, its process group, and the check against its output on one rank."""

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
# diffusers uses a name that torch has changed; users of this service cannot fix that.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.hooks\.context_parallel")


def parallelize(transformer: nn.Module, family: str = "") -> dist.ProcessGroup:
    """Split the transformer's tokens over all ranks of the default group with Ulysses attention.

    Args:
        family: name of the model's family, for error messages.

    Returns:
        The context-parallel group: the ranks that decide together.

    Raises:
        ValueError: it is not known how to split this class, or it has fewer attention heads than ranks, or heads that
            must divide evenly among the ranks and do not.
        SplitWrong: the ranks together compute something else than one rank does.
    """
    world, name = dist.get_world_size(), type(transformer).__name__
    split = SPLITS.get(name)
    if split is None:
        why = WHOLE.get(name, "it is not known how to split it correctly")
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
    config: Any = transformer.config  # typed as a dict by diffusers, but has attributes
    if hasattr(config, "n_heads"):
        return int(config.n_heads)
    heads = int(config.num_attention_heads)
    return min(heads, int(getattr(config, "audio_num_attention_heads", heads)))
