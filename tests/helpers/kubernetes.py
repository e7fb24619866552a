"""Checks Kubernetes' own objects against its published OpenAPI, which the package `lightkube-models` contains."""

from __future__ import annotations

from typing import Any

import msgspec
from lightkube.models.apps_v1 import StatefulSet
from lightkube.models.core_v1 import PersistentVolumeClaim, PodTemplateSpec, Service
from lightkube.models.networking_v1 import NetworkPolicy
from lightkube.models.policy_v1 import PodDisruptionBudget

__all__ = ["KINDS", "PodTemplateSpec", "check"]

#: The objects in our manifests other than KubeRay's custom resource.
KINDS = {
    "Service": Service,
    "StatefulSet": StatefulSet,
    "PersistentVolumeClaim": PersistentVolumeClaim,
    "NetworkPolicy": NetworkPolicy,
    "PodDisruptionBudget": PodDisruptionBudget,
}


def check(value: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    """What the API server checks in strict mode: types, required fields, and that every field is known.

    Raises:
        ValueError: a check failed; says where and why.
    """
    try:
        known = msgspec.to_builtins(msgspec.convert(value, kind))
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
    _same_fields(value, known, kind.__name__)


def _same_fields(given: Any, known: Any, where: str) -> None:
    if isinstance(given, dict):
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"{where} has no field {name!r}")
            _same_fields(value, known[name], f"{where}.{name}")
    elif isinstance(given, list):
        for index, (value, counterpart) in enumerate(zip(given, known, strict=True)):
            _same_fields(value, counterpart, f"{where}[{index}]")
