"""The Ray actor around one rank.

Methods are plain ``def``: Serve cancels requests recursively, and async methods would be cancelled on some ranks and
not on others. ``heartbeat`` runs in a separate concurrency group, so it answers while ``tick`` waits in a collective.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import ray
from ray.actor import ActorHandle

from raycache.logs import quiet_libraries
from raycache.protocol.capabilities import ModelKind, ModelSource
from raycache.protocol.heartbeat import Heartbeat, Loaded, Settled
from raycache.protocol.tick import Tick, TickReport
from raycache.settings import AppSettings

__all__ = ["RankActor", "start_rank"]

_P = ParamSpec("_P")
_Answer = TypeVar("_Answer")
#: Concurrency groups are missing in its types.
_remote: Callable[..., Any] = ray.remote


@_remote(concurrency_groups={"watch": 1}, max_restarts=0, max_task_retries=0)
class RankActor:
    """A rank in a process of its own."""

    def __init__(
        self, settings: AppSettings, rank: int, stacks: str, spare_gpus: tuple[str, ...] | None = None
    ) -> None:
        quiet_libraries()
        if spare_gpus is not None:
            # Ray assigns a spare no resources: one thread and no GPU. Must be set before torch reads them:
            os.environ["OMP_NUM_THREADS"] = str(max(1, int(settings.parallel.rank_cpus)))
            if spare_gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(spare_gpus)
        from raycache.worker.rank import Rank  # imported here so that the engine's process never loads torch

        self._rank = Rank(settings, rank, stacks, spare_gpus or ())

    def prepare(self) -> ModelSource:
        return self._rank.prepare()

    def open_store(self) -> int:
        return self._rank.open_store()

    def join(self, port: int) -> None:
        self._rank.join(port)

    def get_ready(self, source: str) -> None:
        self._rank.get_ready(source)

    def load(self, source: str, kind: ModelKind) -> Loaded:
        return self._rank.load(source, kind)

    def settle(self) -> Settled:
        return self._rank.settle()

    def tick(self, tick: Tick) -> TickReport:
        return self._rank.tick(tick)

    @ray.method(concurrency_group="watch")
    def heartbeat(self) -> Heartbeat:
        return self._rank.heartbeat()


if TYPE_CHECKING:

    class _Remote(Protocol[_P, _Answer]):
        def remote(self, *args: _P.args, **kwargs: _P.kwargs) -> ray.ObjectRef[_Answer]: ...

    class RankHandle(ActorHandle[RankActor]):
        """The type of handles of :class:`RankActor`; Ray adds the methods only at run time."""

        prepare: _Remote[[], ModelSource]
        open_store: _Remote[[], int]
        join: _Remote[[int], None]
        get_ready: _Remote[[str], None]
        load: _Remote[[str, ModelKind], Loaded]
        settle: _Remote[[], Settled]
        tick: _Remote[[Tick], TickReport]
        heartbeat: _Remote[[], Heartbeat]


def start_rank(
    options: dict[str, Any], settings: AppSettings, rank: int, stacks: str, spare_gpus: tuple[str, ...] | None = None
) -> RankHandle:
    """Start a rank's actor. ``options``: Ray's; ``spare_gpus``: GPUs for a spare, those of its rank."""
    actors: Any = RankActor  # the class that Ray's decorator returned
    return actors.options(**options).remote(settings, rank, stacks, spare_gpus)
