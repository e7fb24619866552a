"""The Kubernetes manifests and the image: what can be known of them without a cluster."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from raycache.gang.placement import placement_bundles
from raycache.settings import AppSettings
from tests.helpers.kuberay import RayService
from tests.helpers.kubernetes import KINDS, PodTemplateSpec, check

ROOT = Path(__file__).parents[3]
KUBERAY = ROOT / "deploy" / "kuberay"


@pytest.fixture(scope="module")
def manifest() -> dict:
    return yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())


@pytest.fixture(scope="module")
def service(manifest) -> RayService:
    return RayService.model_validate(manifest)


@pytest.fixture(scope="module")
def application(service) -> ServeApplicationSchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(service.spec.serveConfigV2)).applications[0]


@pytest.fixture(scope="module")
def settings(application) -> AppSettings:
    return AppSettings.model_validate(application.args)


def test_a_field_kuberay_does_not_know_is_refused(manifest):
    wrong = manifest | {"spec": manifest["spec"] | {"serveConfigV3": ""}}
    with pytest.raises(ValidationError, match="serveConfigV3"):
        RayService.model_validate(wrong)


def test_pods_are_what_kubernetes_publishes(manifest):
    cluster = manifest["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        check(group["template"], PodTemplateSpec)


@pytest.mark.parametrize("name", ["redis.yaml", "model-cache.yaml", "network.yaml"])
def test_everything_beside_the_service_is_what_kubernetes_publishes(name):
    for document in _documents(name):
        check(document, KINDS[document["kind"]])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("ports", [{"containerPort": "8000"}], "Expected `int"),
        ("ports", [{"name": "serve"}], "missing required field `containerPort`"),
        ("readinessProbe", {"httpGet": {"path": "/readyz", "port": 8000}, "timeout": 5}, "readinessProbe has no field"),
        ("volumeMount", [], "has no field 'volumeMount'"),
    ],
)
def test_the_published_schema_would_notice(manifest, field, value, words):
    template = copy.deepcopy(manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"])
    template["spec"]["containers"][0][field] = value
    with pytest.raises(ValueError, match=words):
        check(template, PodTemplateSpec)


def test_the_application_is_the_production_config(settings):
    """Whatever is changed in one and not in the other is said here."""
    production = yaml.safe_load((ROOT / "serve_configs" / "flux_dbcache.yaml").read_text())
    expected = AppSettings.model_validate(production["applications"][0]["args"])
    only_here = {"ingress", "logging"}
    assert settings.model_dump(exclude=only_here) == expected.model_dump(exclude=only_here)
    assert settings.ingress.api_keys_file is not None, "a service that others reach needs keys"


def test_every_gang_fits_into_one_worker(service, application, settings):
    bundles = placement_bundles(settings)
    (group,) = service.spec.rayClusterConfig.workerGroupSpecs
    limits = group.template.spec.containers[0].resources
    assert sum(bundle.get("GPU", 0) for bundle in bundles) == int(limits["limits"]["nvidia.com/gpu"])
    cpus = sum(bundle["CPU"] for bundle in bundles) + settings.ingress.num_cpus * settings.ingress.num_replicas
    assert cpus <= int(limits["requests"]["cpu"])
    (engine,) = [deployment for deployment in application.deployments if deployment.name == "Engine"]
    assert group.replicas == engine.num_replicas
    assert "num_replicas" not in application.args, "a change there would replace every engine"


def test_the_head_holds_no_work_and_may_be_lost(service):
    cluster = service.spec.rayClusterConfig
    head = cluster.headGroupSpec
    assert head.rayStartParams["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head.template.spec.containers[0].resources["limits"]
    assert cluster.gcsFaultToleranceOptions is not None
    address = cluster.gcsFaultToleranceOptions.redisAddress.split(":")[0]
    names = {(d["kind"], d["metadata"]["name"]) for d in _documents("redis.yaml")}
    assert ("Service", address) in names


def test_workers_have_shared_memory_models_and_a_probe(service):
    (group,) = service.spec.rayClusterConfig.workerGroupSpecs
    pod = group.template.spec
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.containers[0].volumeMounts}
    volumes = {volume["name"]: volume for volume in pod.volumes}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    (claim,) = _documents("model-cache.yaml")
    assert volumes[mounts["/models"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert pod.containers[0].readinessProbe["httpGet"] == {"path": "/readyz", "port": 8000}


def test_a_worker_has_time_to_drain(service, settings):
    (group,) = service.spec.rayClusterConfig.workerGroupSpecs
    assert group.template.spec.terminationGracePeriodSeconds > settings.reliability.drain_timeout_s


def test_nothing_runs_as_root(service):
    cluster = service.spec.rayClusterConfig
    for template in (cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)):
        assert template.spec.securityContext["runAsNonRoot"] is True
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    user = re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)
    assert user[-1:] == [str(cluster.headGroupSpec.template.spec.securityContext["runAsUser"])]


def test_versions_agree(service):
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"ray=={service.spec.rayClusterConfig.rayVersion}" in constraints.replace("ray[serve]", "ray")
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "raycache" / "__init__.py").read_text(), re.MULTILINE)[1]
    cluster = service.spec.rayClusterConfig
    for template in (cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)):
        assert template.spec.containers[0].image == f"raycache:{version}"


def test_the_image_copies_what_exists():
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), f"{source} is copied into the image and is not there"
    base = re.search(r"^FROM (\S+)", dockerfile, re.MULTILINE)[1]
    assert re.search(r":\d+\.\d+\.\d+-", base), "the base image is pinned"


def _documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))
