"""The hook for tests and benchmarks to watch a rank and to inject faults at an exact step."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from raycache.protocol.heartbeat import Phase
from raycache.protocol.job import Job

if TYPE_CHECKING:
    import torch

__all__ = ["VARIABLE", "Observer", "observer_of"]

VARIABLE = "RAYCACHE_RANK_OBSERVER"


class Observer:
    """Called with what ``rank`` is about to do. This one does nothing; a test's may do anything."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def entered(self, job: Job, phase: Phase) -> None:
        """``job`` has entered ``phase``; called once for each call of the transformer."""

    def step_ends(self, job: Job, step: int, latents: torch.Tensor) -> torch.Tensor | None:
        """A step of ``job`` (from 0) is done. Returns latents to continue with; None: those given."""
        return None


def observer_of(rank: int) -> Observer:
    """Make the observer for ``rank`` that the environment variable names as ``module:Class``; default: a no-op.

    An environment variable and not a setting: a service must not depend on a line in its YAML that exists only for
    tests. Ray passes the environment in which it was started to every rank, also to those that Serve's replicas start
    in other processes, where a test's arguments cannot reach. So set it before Ray starts; it applies to every gang of
    that Ray.

    Raises:
        ValueError: the variable does not name a subclass of :class:`Observer`.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return Observer()
    module, _, name = path.partition(":")
    try:
        named = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"{VARIABLE}={path}: cannot be imported; give `module:Class` ({error})") from error
    if not (isinstance(named, type) and issubclass(named, Observer)):
        raise ValueError(f"{VARIABLE}={path}: it is not a subclass of {Observer.__module__}:Observer")
    return named(rank)
