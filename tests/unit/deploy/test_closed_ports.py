"""Who reaches which port of the cluster on Kubernetes, as its own rule for NetworkPolicy says; and what pods may do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.kuberay import RayService
from tests.helpers.prometheus_operator import KINDS

KUBERAY = Path(__file__).parents[3] / "deploy" / "kuberay"
#: Whoever reaches one of these runs code on every node: GCS, dashboard and job API, client server, object manager.
CONTROL = (6379, 8265, 10001, 52365, 8076, 8077)
SERVE, METRICS, REDIS = 8000, 8080, 6379


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


CLUSTER = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
POLICIES = [one["spec"] for one in documents("network.yaml") if one["kind"] == "NetworkPolicy"]
(BUDGET,) = [one["spec"] for one in documents("network.yaml") if one["kind"] == "PodDisruptionBudget"]
(STATEFUL,) = [one["spec"]["template"] for one in documents("redis.yaml") if one["kind"] == "StatefulSet"]
TEMPLATES = {
    "head": CLUSTER["headGroupSpec"]["template"],
    **{group["groupName"]: group["template"] for group in CLUSTER["workerGroupSpecs"]},
    "redis": STATEFUL,
}
WORKERS = [group["groupName"] for group in CLUSTER["workerGroupSpecs"]]
LABELS = {name: template["metadata"]["labels"] for name, template in TEMPLATES.items()}

#: Others in the same Kubernetes: labels of the pod and of its namespace.
STRANGER = ({"app": "shop"}, {"kubernetes.io/metadata.name": "shop"})
NEIGHBOUR = ({"app": "shop"}, None)  # in our own namespace
OPERATOR = ({"app.kubernetes.io/name": "kuberay-operator"}, {"kubernetes.io/metadata.name": "operators"})
PROMETHEUS = ({"app.kubernetes.io/name": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"})


def reaches(sender: tuple[dict[str, str], dict[str, str] | None], pod: str, port: int) -> bool:
    """Kubernetes' rule: a pod that any policy selects gets what some policy lets through; any other gets everything.

    A sender's namespace of None is that of the policies.
    """
    selecting = [policy for policy in POLICIES if _selects(policy["podSelector"], LABELS[pod])]
    rules = [rule for policy in selecting for rule in policy.get("ingress", [])]
    return not selecting or any(_from(rule, *sender) and _port(rule, port) for rule in rules)


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def _from(rule: dict[str, Any], labels: dict[str, str], namespace: dict[str, str] | None) -> bool:
    if "from" not in rule:
        return True
    return any(
        ("podSelector" not in peer or _selects(peer["podSelector"], labels))
        and (
            namespace is None
            if "namespaceSelector" not in peer
            else _selects(peer["namespaceSelector"], namespace or {})
        )
        for peer in rule["from"]
    )


def _port(rule: dict[str, Any], port: int) -> bool:
    return "ports" not in rule or any(one["port"] == port for one in rule["ports"])


@pytest.mark.parametrize("pod", ["head", *WORKERS])
@pytest.mark.parametrize("port", CONTROL)
@pytest.mark.parametrize("sender", [STRANGER, NEIGHBOUR, PROMETHEUS], ids=["stranger", "neighbour", "prometheus"])
def test_nobody_from_outside_reaches_what_runs_code(sender: Any, pod: str, port: int):
    assert not reaches(sender, pod, port)


def test_what_must_reach_does():
    for pod in ("head", *WORKERS):
        for other in ("head", *WORKERS):
            for port in (*CONTROL, SERVE, METRICS, 34567):
                assert reaches((LABELS[other], None), pod, port), "Ray takes any port between its own pods"
        assert reaches(PROMETHEUS, pod, METRICS)
    assert reaches(OPERATOR, "head", 8265), "the operator deploys the application through it"
    assert not reaches(OPERATOR, "head", 10001)
    for worker in WORKERS:
        assert reaches(STRANGER, worker, SERVE)
    assert reaches((LABELS["head"], None), "redis", REDIS)


@pytest.mark.parametrize("sender", [STRANGER, NEIGHBOUR, OPERATOR], ids=["stranger", "neighbour", "operator"])
def test_redis_is_the_clusters_own(sender: Any):
    assert not reaches(sender, "redis", REDIS)


def test_without_the_policies_everybody_would(monkeypatch: pytest.MonkeyPatch):
    """That the rule above tells the difference."""
    monkeypatch.setitem(globals(), "POLICIES", [])
    assert reaches(STRANGER, "head", 10001)


def test_ray_itself_asks_for_a_token():
    service = RayService.model_validate(yaml.safe_load((KUBERAY / "rayservice.yaml").read_text()))
    assert service.spec.rayClusterConfig.authOptions.mode == "token"
    assert tuple(map(int, service.spec.rayClusterConfig.rayVersion.split("."))) >= (2, 52, 0), "older ones ignore it"


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for template in TEMPLATES.values():
        for container in [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]:
            yield template["spec"], container


def test_every_pod_meets_the_restricted_standard():
    """Kubernetes' Pod Security Standard `restricted`, control by control."""
    harmless = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for pod, container in containers():
        both = {**pod["securityContext"], **container["securityContext"]}
        assert both["runAsNonRoot"] is True
        assert both["runAsUser"] != 0
        assert both["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost")
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"].get("privileged")
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [port for port in container.get("ports", []) if "hostPort" in port]
        assert {key for volume in pod.get("volumes", []) for key in volume if key != "name"} <= harmless


def test_a_drain_takes_one_gang_at_a_time():
    assert BUDGET["maxUnavailable"] == 1
    for name, labels in LABELS.items():
        assert _selects(BUDGET["selector"], labels) == (name in WORKERS)
    assert sum(group["replicas"] for group in CLUSTER["workerGroupSpecs"]) > BUDGET["maxUnavailable"]


def test_prometheus_finds_every_pod():
    kinds = {one["kind"]: KINDS[one["kind"]].model_validate(one) for one in documents("monitoring.yaml")}
    monitor = kinds["PodMonitor"].spec
    for name in ("head", *WORKERS):
        assert monitor.selector.matchLabels.items() <= LABELS[name].items()
        ports = {port.get("name"): port["containerPort"] for port in TEMPLATES[name]["spec"]["containers"][0]["ports"]}
        assert ports[monitor.podMetricsEndpoints[0].port] == METRICS
    assert not monitor.selector.matchLabels.items() <= LABELS["redis"].items()
    assert kinds["PrometheusRule"].spec.groups
