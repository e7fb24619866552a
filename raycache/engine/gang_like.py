"""The interface that an engine needs of a gang, and its implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import ray
from ray import serve

from raycache.gang.costs import Costs
from raycache.gang.gang import Gang
from raycache.gang.outlook import Outlook
from raycache.gang.queue import JobHandle
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import GangStatus, Job, Progress
from raycache.settings import AppSettings

__all__ = ["GangLike", "gang_of_this_replica"]


class GangLike(Protocol):
    """The interface that the engine needs of a gang."""

    @property
    def costs(self) -> Costs: ...
    def start(self) -> None: ...
    def submit(
        self,
        job: Job,
        *,
        deadline: float | None,
        on_progress: Callable[[Progress], None] | None,
        caller: str,
        weight: float,
    ) -> JobHandle: ...
    def outlook(self) -> Outlook: ...
    def status(self) -> GangStatus: ...
    def check_health(self) -> None: ...
    def capabilities(self) -> Capabilities: ...
    def hand_back(self) -> int: ...
    def shutdown(self, drain_s: float = 0) -> None: ...


def gang_of_this_replica(settings: AppSettings) -> Gang:
    """Make a gang in the placement group that Serve reserved for this replica."""
    name = serve.get_replica_context().replica_id.unique_id
    return Gang(settings, ray.util.get_current_placement_group(), name=name)
