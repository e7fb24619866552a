"""The part of KubeRay's custom resource that our manifest uses: names and types of its API reference, `ray.io/v1`.

The published definition is a megabyte of YAML, nearly all of it Kubernetes' own pod template. Our manifest can be wrong
in the part around the pod; unknown fields are errors, as they are for the API server in strict mode.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RayService"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Container(_Strict):
    name: str
    image: str
    securityContext: dict[str, Any] = {}
    ports: list[dict[str, Any]] = []
    env: list[dict[str, Any]] = []
    resources: dict[Literal["requests", "limits"], dict[str, str]]
    readinessProbe: dict[str, Any] | None = None
    volumeMounts: list[dict[str, Any]] = []


class _PodSpec(_Strict):
    securityContext: dict[str, Any]
    containers: list[_Container] = Field(min_length=1)
    nodeSelector: dict[str, str] = {}
    tolerations: list[dict[str, str]] = []
    terminationGracePeriodSeconds: int = 30
    volumes: list[dict[str, Any]] = []


class _Template(_Strict):
    metadata: dict[str, Any] = {}
    spec: _PodSpec


class _HeadGroup(_Strict):
    rayStartParams: dict[str, str]
    template: _Template
    serviceType: str | None = None
    enableIngress: bool | None = None


class _WorkerGroup(_Strict):
    groupName: str
    rayStartParams: dict[str, str]
    template: _Template
    replicas: int
    minReplicas: int
    maxReplicas: int
    numOfHosts: int = 1
    idleTimeoutSeconds: int | None = None
    suspend: bool = False


class _Credential(_Strict):
    value: str | None = None
    valueFrom: dict[str, Any] | None = None


class _GcsFaultTolerance(_Strict):
    redisAddress: str
    redisUsername: _Credential | None = None
    redisPassword: _Credential | None = None
    externalStorageNamespace: str | None = None


class _Auth(_Strict):
    mode: Literal["disabled", "token"]
    secretName: str | None = None
    enableK8sTokenAuth: bool | None = None


class _Cluster(_Strict):
    rayVersion: str
    authOptions: _Auth | None = None
    headGroupSpec: _HeadGroup
    workerGroupSpecs: list[_WorkerGroup]
    gcsFaultToleranceOptions: _GcsFaultTolerance | None = None
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: dict[str, Any] | None = None
    headServiceAnnotations: dict[str, str] = {}
    suspend: bool = False


class _Upgrade(_Strict):
    type: Literal["NewCluster", "None"]


class _Spec(_Strict):
    serveConfigV2: str
    rayClusterConfig: _Cluster
    upgradeStrategy: _Upgrade | None = None
    serveService: dict[str, Any] | None = None
    excludeHeadPodFromServeSvc: bool = False


class RayService(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: dict[str, Any]
    spec: _Spec
