"""The YAML files say what their comments promise, and Serve understands every key of them."""

import re
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from raycache.cluster.capacity import Gangs, shortage, shortage_of_all, total
from raycache.gang.placement import placement_bundles
from raycache.settings import AppSettings, ServiceSettings

FOLDER = Path(__file__).parents[3] / "serve_configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def load(name: str) -> tuple[dict, ServiceSettings]:
    document = yaml.safe_load((FOLDER / name).read_text())
    return document, ServiceSettings.model_validate(document["applications"][0]["args"])


def test_the_public_ones_are_there():
    assert {f.name for f in FILES} >= {f"flux_{m}.yaml" for m in ("dbcache", "fbcache", "dbprune")} | {
        "laptop_dbcache.yaml"
    }


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_serve_and_settings_understand_it(file):
    document, _ = load(file.name)
    # Serve ignores unknown keys; a misspelt one must not pass here.
    assert set(document) <= set(ServeDeploySchema.model_fields)
    schema = ServeDeploySchema.model_validate(document)
    (app,) = schema.applications
    assert (app.name, app.route_prefix, app.import_path) == ("flux", "/", "raycache.app:build")
    assert (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_in_production_one_ingress_may_die(file):
    _, settings = load(file.name)
    assert settings.ingress.num_replicas == (1 if file.stem.startswith("laptop") else 2)


@pytest.mark.parametrize(("name", "ranks"), [("laptop_dbcache", 1), ("laptop_two_ranks", 2), ("laptop_two_ranks", 4)])
def test_the_laptop_configs_fit_two_cpus(name, ranks):
    document, settings = load(f"{name}.yaml")
    assert settings.engines[0].parallel.ranks_per_replica == min(ranks, 2)
    args = document["applications"][0]["args"]
    args["parallel"]["ranks_per_replica"] = ranks
    settings = AppSettings.model_validate(args)
    bundles = placement_bundles(settings)
    assert shortage([*bundles, {"CPU": settings.ingress.num_cpus}], [{"CPU": 2.0}]) is None


@pytest.mark.parametrize("name", ["flux_dbcache.yaml", "flux_fbcache.yaml", "flux_dbprune.yaml"])
def test_production_asks_four_l20s_in_its_bundles(name):
    _, settings = load(name)
    bundles = placement_bundles(settings)
    assert total(bundles)["GPU"] == 4.0
    assert sum(bundle.get("GPU") == 1.0 and bundle.get("accelerator_type:L20") == 0.001 for bundle in bundles) == 4
    # Serve's replica takes the first bundle.
    assert bundles[0]["CPU"] >= settings.parallel.engine_cpus


def test_two_models_have_gangs_and_defaults_of_their_own():
    _, service = load("flux_two_models.yaml")
    dev, schnell = service.engines
    assert [total(placement_bundles(one))["GPU"] for one in (dev, schnell)] == [4.0, 2.0]
    assert (dev.defaults.num_inference_steps, schnell.defaults.num_inference_steps) == (28, 4)
    assert {str(one.defaults.size) for one in (dev, schnell)} == {"1024x1024"}, "from beside the list"
    assert [service.names.find(name) for name in (None, "gpt-image-1", "flux-schnell")] == [
        "flux-dev",
        "flux-dev",
        "flux-schnell",
    ]


def test_the_example_of_several_models_fits_a_laptop():
    """That of the documents, with the names that they say."""
    text = (FOLDER.parent / "docs" / "operating.md").read_text()
    (example,) = (
        block for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "models:" in block
    )
    (application,) = yaml.safe_load(example)["applications"]
    service = ServiceSettings.model_validate(application["args"])
    names = [service.deployment(one.model.name) for one in service.engines]
    assert names == ["Engine-shapes", "Engine-org-noise"]
    assert all(f"`{name}`" in text for name in names)
    gangs = [Gangs(one.model.name, placement_bundles(one)) for one in service.engines]
    assert shortage_of_all(gangs, [{"CPU": 2.0 - service.ingress.num_cpus}]) is None
    assert shortage_of_all(gangs, [{"CPU": 0.5}]) is not None


def test_flux_dbcache_is_the_published_setting():
    _, settings = load("flux_dbcache.yaml")
    cache = settings.cache
    assert (cache.Fn_compute_blocks, cache.Bn_compute_blocks) == (8, 8)
    assert (cache.warmup_steps, cache.residual_diff_threshold) == (8, 0.12)
