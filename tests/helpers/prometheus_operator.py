"""The part of the Prometheus operator's custom resources that we use: names and types of its API reference, v1."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["KINDS"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Endpoint(_Strict):
    port: str
    interval: str = Field(default="30s", pattern=r"^\d+(ms|s|m|h)$")
    path: str | None = None


class _Selector(_Strict):
    matchLabels: dict[str, str]


class _PodMonitorSpec(_Strict):
    selector: _Selector
    podMetricsEndpoints: list[_Endpoint]
    namespaceSelector: dict[str, Any] | None = None


class PodMonitor(_Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: dict[str, Any]
    spec: _PodMonitorSpec


class _Rule(_Strict):
    alert: str
    expr: str
    hold: str | None = Field(default=None, alias="for", pattern=r"^\d+(ms|s|m|h|d)$")
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Group(_Strict):
    name: str
    rules: list[_Rule]


class _Groups(_Strict):
    groups: list[_Group]


class PrometheusRule(_Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: dict[str, Any]
    spec: _Groups


KINDS: dict[str, type[BaseModel]] = {"PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}
