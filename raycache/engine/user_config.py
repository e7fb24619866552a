"""Serve's ``user_config`` of the engine: the values in force, and those refused with the reason.

Serve considers a deployment healthy whatever its ``user_config`` says, and passes it to every engine that starts later.
An illegal one must therefore change nothing in a running engine, nor keep the next one from starting.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, Protocol

from pydantic import ValidationError

from raycache.policy import Policy
from raycache.protocol.errors import from_validation_error

__all__ = ["ClusterMemory", "Memory", "NoMemory", "UserConfig", "memory_of_this_replica"]

logger = logging.getLogger("ray.serve")

_NAMESPACE = "raycache"


class Memory(Protocol):
    """Keeps the last good ``user_config`` after the engine ends."""

    def load(self) -> dict[str, Any] | None: ...
    def save(self, user_config: dict[str, Any]) -> None: ...


class NoMemory:
    """Used outside Serve."""

    def load(self) -> dict[str, Any] | None:
        return None

    def save(self, user_config: dict[str, Any]) -> None: ...


class ClusterMemory:
    """Ray's own key-value store: lasts as long as the cluster and this Serve instance."""

    def __init__(self, app: str, deployment: str) -> None:
        import ray
        from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        self._key = f"user_config/{controller._actor_id.hex()}/{app}/{deployment}"

    def load(self) -> dict[str, Any] | None:
        from ray.experimental.internal_kv import _internal_kv_get

        kept = _internal_kv_get(self._key, namespace=_NAMESPACE)
        return None if kept is None else json.loads(kept)

    def save(self, user_config: dict[str, Any]) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self._key, json.dumps(user_config), overwrite=True, namespace=_NAMESPACE)


def memory_of_this_replica() -> Memory:
    """The cluster's, for the deployment of this replica; no memory outside Serve."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        replica = serve.get_replica_context()
        return ClusterMemory(replica.app_name, replica.deployment)
    except (RayServeException, ValueError):
        return NoMemory()


class UserConfig:
    """The ``user_config`` of one engine.

    Args:
        base: the policy of the settings, already checked.
        check: raises ValueError for a policy that this deployment cannot have.
        memory: where the deployment's last good ``user_config`` is kept.

    Attributes:
        policy: in force.
        refused: why the last ``user_config`` is not in force; None when it is.
    """

    def __init__(self, base: Policy, check: Callable[[Policy], None], memory: Memory) -> None:
        self._base, self._check, self._memory = base, check, memory
        self._good: dict[str, Any] = {}
        self._kept: dict[str, Any] | None = None
        self.policy = base
        self.refused: str | None = None

    def apply(self, given: Any, *, serving: bool) -> None:
        """Apply ``given``.

        Args:
            given: from Serve; None and ``{}`` stand for the settings themselves.
            serving: whether the engine serves already; False while it starts.

        Raises:
            ValueError: it is illegal, the engine starts, and no good one of this deployment is known: a first
                deployment, which must fail. Otherwise the last good one stays in force, and log, status and
                :attr:`refused` say why.
        """
        try:
            self._take({} if given is None else given)
            self.refused = None
            return
        except ValueError as error:
            reason = _words(error)
            if not serving:
                self._fall_back(error)
        self.refused = reason
        logger.error("user_config is not applied, the last good one stays in force: %s", reason)

    def keep(self) -> None:
        """Save the one in force: the engine serves with it."""
        if self._kept != self._good:
            try:
                self._memory.save(self._good)
            except Exception as error:  # the engine also serves without it
                logger.warning("The user_config in force cannot be saved for later engines: %s", error)
            self._kept = self._good

    def _fall_back(self, error: ValueError) -> None:
        last = self._memory.load()
        if last is None:
            raise error
        try:
            self._take(last)
        except ValueError as other:  # it was legal under other settings
            logger.error("The last good user_config is not legal under these settings either: %s", _words(other))
            self._good, self.policy = {}, self._base

    def _take(self, given: Any) -> None:
        if not isinstance(given, dict):
            raise ValueError(f"must be a mapping of the policy's fields, got {type(given).__name__}")
        policy = self._base.changed(given)
        self._check(policy)
        self._good, self.policy = given, policy


def _words(error: ValueError) -> str:
    """The error in one line, starting with the field."""
    if isinstance(error, ValidationError):
        return from_validation_error(error, Policy.model_fields).message
    return " ".join(str(error).split())
