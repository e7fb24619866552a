"""Presets: words of a request become cache options; the bundled files are sound; tune writes what is read here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from cache_core.options import DBCacheOptions, NoCacheOptions, check_block_count
from raycache.answers import result_of
from raycache.errors import RequestError
from raycache.job import JobOutput
from raycache.presets import PRESET_NAMES, Presets, load_presets, preset_of
from raycache.schemas import GenerationRequest, ModelInfo
from raycache.settings import AppSettings, Policy
from raycache.validation import resolve

FILES = sorted((Path(__file__).parents[2] / "raycache" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bundled_files_name_every_preset_and_fit_flux(file: Path) -> None:
    presets = load_presets("anything", file)
    assert tuple(presets.presets) == PRESET_NAMES
    assert presets.presets["exact"] == NoCacheOptions()
    for options in presets.presets.values():
        check_block_count(options, 57)


def test_a_model_finds_its_file_and_others_take_flux_dev() -> None:
    assert load_presets("demo").model == "demo"
    flux = load_presets("black-forest-labs/FLUX.1-dev")
    assert flux.source == "from published figures"
    assert load_presets("somebody/Other") == flux
    assert load_presets("/models/FLUX.1-dev") == flux


@pytest.mark.parametrize(
    ("word", "name"),
    [("low", "fast"), ("medium", "balanced"), ("high", "high"), *((name, name) for name in PRESET_NAMES)],
)
def test_words(word: str, name: str) -> None:
    presets = load_presets("black-forest-labs/FLUX.1-dev").presets
    assert preset_of(word, presets, DBCacheOptions()) == presets[name]


def test_auto_is_the_deployments_default() -> None:
    default = DBCacheOptions(residual_diff_threshold=0.33)
    assert preset_of("auto", load_presets("x").presets, default) is default


def test_exact_is_there_without_being_named_and_others_are_not() -> None:
    assert preset_of("exact", {}, DBCacheOptions()) == NoCacheOptions()
    with pytest.raises(KeyError):
        preset_of("fast", {}, DBCacheOptions())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: x\nsource: y\npresets: {swift: {type: none}}\n", "swift"),
        ("model: x\nsource: y\npresets: {fast: {type: DBCache, Fn_compute_blocks: -1}}\n", "Fn_compute_blocks"),
        ("model: [", "no presets file"),
    ],
)
def test_a_wrong_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (file := tmp_path / "presets.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_presets("x", file)
    assert str(file) in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        load_presets("x", tmp_path / "missing.yaml")


def test_what_tune_writes_can_be_read(tmp_path: Path) -> None:
    from raycache.tune.__main__ import presets_file
    from raycache.tune.sweep import Job, Point

    options = DBCacheOptions(residual_diff_threshold=0.3, taylor_order=1)
    point = Point("DBCache", options.to_dict(), 0.5, 31.0, 0.9, 0.1, 1.0)
    job = Job(("a",), 28, 128, 128, 8)
    text = presets_file("demo", job, {"balanced": 30.0, "fast": 25.0}, {"balanced": point, "fast": None})
    (file := tmp_path / "presets.yaml").write_text(text)
    presets = load_presets("demo", file)
    assert presets.presets["balanced"] == options
    assert presets.presets["fast"] == NoCacheOptions()
    assert Presets.model_validate(yaml.safe_load(text)) == presets
    assert "31.0 dB, 50.0% of blocks" in text


MODEL = ModelInfo("demo", 57, 4, 16, "FluxPipeline")
POLICY = AppSettings.model_validate({"model": {"path": "black-forest-labs/FLUX.1-dev"}}).policy


def resolved(policy: Policy = POLICY, **fields: object) -> GenerationRequest:
    return resolve(GenerationRequest(prompt="a circle", **fields), policy, MODEL, model_name="flux", ranks=1)


def test_a_request_is_drawn_with_its_preset() -> None:
    assert resolved(quality="low").cache == POLICY.presets["fast"]
    assert resolved(quality="exact").cache == NoCacheOptions()
    assert resolved().cache == resolved(quality="auto").cache == POLICY.cache
    explicit = DBCacheOptions(residual_diff_threshold=0.5)
    assert resolved(quality="fast", cache=explicit).cache == explicit


def test_presets_can_change_while_the_service_runs() -> None:
    changed = POLICY.changed({"presets": {"fast": {"type": "none"}}})
    assert resolved(changed, quality="fast").cache == NoCacheOptions()
    assert resolved(changed, quality="balanced").cache == POLICY.presets["balanced"]


def test_a_missing_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(RequestError, match="no preset 'fast'") as caught:
        resolved(POLICY.model_copy(update={"presets": {}}), quality="low")
    assert caught.value.param == "quality"
    with pytest.raises(ValueError, match="quality"):
        GenerationRequest(prompt="a circle", quality="swift")


def test_settings_name_a_presets_file(tmp_path: Path) -> None:
    (file := tmp_path / "presets.yaml").write_text("model: x\nsource: y\npresets: {fast: {type: FBCache}}\n")
    settings = AppSettings.model_validate({"model": {"path": "noise", "presets": str(file)}})
    assert list(settings.policy.presets) == ["fast"]


def test_unknown_words_are_reported_for_the_bundled_model_only() -> None:
    request = resolved().model_copy(update={"prompt": "a red cat"})
    output = JobOutput(np.zeros((0, 8, 8, 3), np.uint8), None, 0.0, 0.0, 0.0)
    (warning,) = [w for w in result_of(request, output, 1.0, MODEL).warnings if "unknown" in w]
    assert "'cat'" in warning
    other = replace(MODEL, kind="folder")
    assert not [w for w in result_of(request, output, 1.0, other).warnings if "unknown" in w]
