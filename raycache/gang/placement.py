"""The bundles of a gang's placement group, and which process runs in which."""

from __future__ import annotations

from raycache.settings import AppSettings

__all__ = ["placement_bundles", "rank_bundle_index"]

#: Ray gives a node one unit of `accelerator_type:X`, for all its GPUs, so each rank takes a fraction of it.
_ACCELERATOR_SLIVER = 0.001


def placement_bundles(settings: AppSettings) -> list[dict[str, float]]:
    """Bundle 0 is the engine's own process (Serve pins it there); bundle 1 + r is rank r's.

    The accelerator type is in the bundles and never on an actor: Serve checks an actor's options only against bundle 0,
    fails later in its controller, and leaks the placement group.
    """
    parallel = settings.parallel
    rank: dict[str, float] = {"CPU": parallel.rank_cpus}
    if parallel.gpus_per_rank:
        rank["GPU"] = parallel.gpus_per_rank
    if parallel.accelerator_type:
        rank[f"accelerator_type:{parallel.accelerator_type}"] = _ACCELERATOR_SLIVER
    return [{"CPU": parallel.engine_cpus}, *(dict(rank) for _ in range(parallel.ranks_per_replica))]


def rank_bundle_index(rank: int, first_bundle: int = 0) -> int:
    """The bundle of rank ``rank`` in a placement group where the gang's bundles start at ``first_bundle``."""
    return first_bundle + 1 + rank
