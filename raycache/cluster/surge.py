"""Checks for room for one more replica, so that the old one serves until the new one is warm."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from raycache.cluster.capacity import Bundle, room_for_each

__all__ = ["surge_percents"]


def surge_percents(replicas: Sequence[Sequence[Bundle]]) -> list[int]:
    """Serve's ``max_surge_percent`` for deployments that are updated together, by the bundles of one replica of each.

    1 allows one additional replica in a rolling update: a new one that never gets ready then replaces none that works.
    Without room for it Serve would wait forever, so it is 0: the old replica is stopped first.
    """
    if not ray.is_initialized():
        return [0] * len(replicas)
    free = ray._private.state.available_resources_per_node()
    return [int(room) for room in room_for_each(replicas, list(free.values()))]
