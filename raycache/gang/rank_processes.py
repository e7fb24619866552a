"""Processes for the ranks of one gang: those of the next incarnation, and spares that have imported all libraries.

Importing libraries takes a rank longer than anything else in a rebuild except reading the weights. A spare has done so
before anything fails. It holds no GPU memory: it knows its rank's GPU, but does not touch it until it is needed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raycache.gang.placement import rank_bundle_index
from raycache.gang.stacks import StacksFile
from raycache.protocol.capabilities import ModelSource
from raycache.protocol.heartbeat import Heartbeat
from raycache.ray_errors import DEATHS
from raycache.settings import AppSettings
from raycache.worker.actor import start_rank

if TYPE_CHECKING:
    from raycache.worker.actor import RankHandle

__all__ = ["RankProcess", "RankProcesses", "end_processes"]

_logger = logging.getLogger("raycache.gang")

#: Seconds within which an idle spare always answers, also on a busy machine.
_ANSWER_S = 5.0


@dataclass
class RankProcess:
    """One rank's actor, the file for its stacks, and the pending heartbeat, if any, requested at ``asked_at``.

    Attributes:
        pid: of the process, once it is known.
    """

    actor: RankHandle
    stacks: StacksFile
    pid: int | None = None
    asked: ray.ObjectRef[Heartbeat] | None = None
    asked_at: float = 0.0


class RankProcesses:
    """Used by the gang's thread only.

    Args:
        settings: the application's.
        placement_group: reserved for the gang; None = Ray places the ranks anywhere.
        first_bundle: index of the gang's first bundle in it.
        name: of the gang, for logs.
    """

    def __init__(self, settings: AppSettings, placement_group: Any, first_bundle: int, name: str) -> None:
        self._settings, self._placement_group, self._first_bundle = settings, placement_group, first_bundle
        self._name = name
        self._spares: dict[int, RankProcess] = {}

    def take(self) -> list[RankProcess]:
        """One for each rank, a spare if there is one; the caller must end them."""
        parallel = self._settings.parallel
        self._sort_out()
        spares, self._spares = self._spares, {}
        if spares:
            _logger.info("Gang %s: using %d spare processes", self._name, len(spares))
        owns = {"num_cpus": parallel.rank_cpus, "num_gpus": parallel.gpus_per_rank}
        return [spares.get(rank) or self._started(rank, owns) for rank in range(parallel.ranks_per_replica)]

    def keep_spares(self, gpus: Sequence[Sequence[str]], source: ModelSource) -> None:
        """Start a spare for each rank; they prepare while the gang works.

        Args:
            gpus: GPUs of each rank, as Ray numbers them on its node.
            source: the model that the ranks have loaded.
        """
        parallel = self._settings.parallel
        if not parallel.keeps_spares or (self._placement_group is None and parallel.gpus_per_rank):
            return  # outside a placement group Ray may assign the GPU of a dead rank to another actor
        for rank, own in enumerate(gpus):
            if rank not in self._spares:
                # It requests no resources: the living rank has those of the bundle, and a spare shares them.
                spare = self._started(rank, {"num_cpus": 0, "num_gpus": 0}, tuple(own))
                spare.actor.get_ready.remote(source[0])
                spare.asked = spare.actor.heartbeat.remote()
                self._spares[rank] = spare

    def end(self) -> None:
        """No further incarnation follows: end the spares."""
        self._sort_out()
        for rank in list(self._spares):
            self._put_away(rank)

    def _sort_out(self) -> None:
        """Remove spares that died; one that is still importing has a head start, and is kept."""
        asked = {rank: spare.asked for rank, spare in self._spares.items() if spare.asked is not None}
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_S)
        for rank, ref in asked.items():
            if not ray.wait([ref], timeout=0)[0]:
                continue
            spare = self._spares[rank]
            try:
                spare.pid, spare.asked = ray.get(ref).pid, None
                ray.get(spare.actor.heartbeat.remote(), timeout=_ANSWER_S)  # it was alive then; check again
            except (*DEATHS, RayTaskError, GetTimeoutError) as error:
                _logger.warning("Gang %s: the spare of rank %d has died (%s)", self._name, rank, type(error).__name__)
                self._put_away(rank)

    def _put_away(self, rank: int) -> None:
        spare = self._spares.pop(rank)
        end_processes([spare.actor], [] if spare.pid is None else [spare.pid], self._name)
        spare.stacks.close()

    def _started(self, rank: int, resources: dict[str, float], gpus: tuple[str, ...] | None = None) -> RankProcess:
        options: dict[str, Any] = dict(resources)
        if self._placement_group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self._placement_group, placement_group_bundle_index=rank_bundle_index(rank, self._first_bundle)
            )
        stacks = StacksFile()
        return RankProcess(start_rank(options, self._settings, rank, stacks.path, gpus), stacks)


def end_processes(actors: Sequence[RankHandle], pids: Sequence[int], name: str) -> None:
    """Kill these actors of gang ``name`` and wait until their processes have ended and their GPU memory is free."""
    for actor in actors:
        ray.kill(actor, no_restart=True)
    alive = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            alive.append(psutil.Process(pid))
            alive[-1].kill()  # Ray asks the process to exit first, which a stopped one ignores
    _, left = psutil.wait_procs(alive, timeout=5)
    for process in left:
        _logger.error("Rank process %d of %s did not end", process.pid, name)
