"""Is there room for one more, so that the old replica serves until the new one is warm?"""

from __future__ import annotations

from collections.abc import Sequence

import ray

from raycache.cluster.capacity import Bundle, shortage

__all__ = ["surge_percent"]


def surge_percent(bundles: Sequence[Bundle]) -> int:
    """Serve's ``max_surge_percent`` for replicas that take ``bundles`` on one node.

    1 is one replica beside the others in a rolling update: a new one that never gets warm then costs none that does.
    Without room Serve would wait for it for ever, so it is 0: the old replica goes first.
    """
    if not ray.is_initialized():
        return 0
    free = ray._private.state.available_resources_per_node()
    return 1 if shortage(bundles, list(free.values())) is None else 0
