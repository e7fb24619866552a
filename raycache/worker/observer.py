"""The hook through which tests and benchmarks watch a rank, and inject faults at an exact step."""

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
    """Is told what ``rank`` does, before it does it. This one does nothing; a test's may do anything."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def entered(self, job: Job, phase: Phase) -> None:
        """``job`` is in ``phase``; told once for each call of the transformer."""

    def step_ends(self, job: Job, step: int, latents: torch.Tensor) -> torch.Tensor | None:
        """A step of ``job`` (from 0) is done. Returns latents to go on with, None for these."""
        return None


def observer_of(rank: int) -> Observer:
    """The one that the environment names as ``module:Class``, made for ``rank``; one that does nothing without.

    An environment variable and no setting: what a service does must not hang on a word in its YAML that is there for
    tests alone. Ray hands the environment in which it was started to every rank, also to those that Serve's replicas
    start in other processes, which no argument of a test's would reach. So whoever sets it does so before Ray starts,
    and means every gang of that Ray.

    Raises:
        ValueError: the variable names no subclass of :class:`Observer`.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return Observer()
    module, _, name = path.partition(":")
    try:
        named = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"{VARIABLE}={path}: there is no such `module:Class` ({error})") from error
    if not (isinstance(named, type) and issubclass(named, Observer)):
        raise ValueError(f"{VARIABLE}={path}: it is no subclass of {Observer.__module__}:Observer")
    return named(rank)
