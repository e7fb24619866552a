"""Presets: words of a request become cache options; the bundled files are sound; tune writes what is read here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from cache_core.options import DBCacheOptions, NoCacheOptions, check_block_count
from raycache.engine.convert import result_of
from raycache.engine.engine import Engine
from raycache.policy import Policy
from raycache.presets import PRESET_NAMES, Presets, load_presets, preset_of, quality_warnings
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.job import JobOutput
from raycache.protocol.resolve import check_deployment, deployment_warnings, resolve
from raycache.protocol.schemas import GenerationRequest
from raycache.settings import AppSettings
from tests.helpers.fake_gang import SETTINGS, FakeGang, finish, started

FILES = sorted((Path(__file__).parents[2] / "raycache" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bundled_files_name_every_preset_and_fit_flux(file: Path) -> None:
    presets = load_presets("anything", file)
    assert tuple(presets.presets) == PRESET_NAMES
    assert presets.presets["exact"] == NoCacheOptions()
    for options in presets.presets.values():
        check_block_count(options, 57)


def test_a_model_finds_its_file() -> None:
    assert load_presets("demo").model == "demo"
    flux = load_presets("black-forest-labs/FLUX.1-dev")
    assert flux.source == "from published figures"
    assert load_presets("/models/FLUX.1-dev") == flux


@pytest.mark.parametrize(
    "path",
    [
        "Qwen/Qwen-Image",
        "noise",
        "black-forest-labs/FLUX.1-schnell",
        "/models/demo",
        "./demo",
        "Demo",
        "x",
        "/",
        "README",
    ],
)
def test_a_model_nobody_knows_has_exact_only_and_says_so(path: str) -> None:
    presets = load_presets(path)
    assert presets.presets == {"exact": NoCacheOptions()}
    assert presets.model == path
    assert f"no presets are known for {path!r}" in presets.source
    assert "python -m raycache.tune" in presets.source


def test_the_log_of_an_engine_says_that_presets_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    for path, told in (("Qwen/Qwen-Image", True), ("demo", False)):
        caplog.clear()
        with caplog.at_level("WARNING", "ray.serve"):
            settings = AppSettings.model_validate(
                {"model": {"path": path}, "parallel": {"ranks_per_replica": 1}, "defaults": {"size": "64x64"}}
            )
            Engine(settings, FakeGang)
        assert ("no presets are known for 'Qwen/Qwen-Image'" in caplog.text) is told


@pytest.mark.parametrize(
    ("word", "name"),
    [("low", "fast"), ("medium", "balanced"), ("high", "high"), *((name, name) for name in PRESET_NAMES)],
)
def test_words(word: str, name: str) -> None:
    presets = load_presets("black-forest-labs/FLUX.1-dev").presets
    assert preset_of(word, presets, DBCacheOptions()) == presets[name]


def test_auto_is_the_deployments_default() -> None:
    default = DBCacheOptions(residual_diff_threshold=0.33)
    assert preset_of("auto", load_presets("demo").presets, default) is default


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
    from raycache.size import Size
    from raycache.tune.command import presets_file
    from raycache.tune.sweep import Job, Point

    options = DBCacheOptions(residual_diff_threshold=0.3, taylor_order=1)
    point = Point("DBCache", options.to_dict(), 0.5, 31.0, 0.9, 0.1, 1.0)
    job = Job(("a",), 28, Size(128, 128), 8)
    text = presets_file("demo", job, {"balanced": 30.0, "fast": 25.0}, {"balanced": point, "fast": None})
    (file := tmp_path / "presets.yaml").write_text(text)
    presets = load_presets("demo", file)
    assert presets.presets["balanced"] == options
    assert presets.presets["fast"] == NoCacheOptions()
    assert Presets.model_validate(yaml.safe_load(text)) == presets
    assert "31.0 dB, 50.0% of blocks" in text


MODEL = Capabilities("demo", 57, 4, 16, "FluxPipeline", 16)
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


EXACT = POLICY.model_copy(update={"presets": {"exact": NoCacheOptions()}})


@pytest.mark.parametrize(
    ("word", "names", "drawn"),
    [
        ("standard", PRESET_NAMES, "balanced"),
        ("hd", PRESET_NAMES, "high"),
        ("xhigh", PRESET_NAMES, "exact"),
        ("max", PRESET_NAMES, "exact"),
        ("hd", ["exact", "balanced"], "exact"),
        ("standard", ["high", "fast"], "high"),
        ("hd", ["balanced", "fast"], "balanced"),
        ("low", ["exact", "high"], "high"),
        ("high", ["exact"], "exact"),
        ("max", [], "exact"),
    ],
)
def test_openais_words_take_the_nearest_preset_and_say_so(word: str, names: list[str], drawn: str) -> None:
    presets = {name: POLICY.presets[name] for name in names}
    policy = POLICY.model_copy(update={"presets": presets})
    request = resolved(policy, quality=word)
    assert request.cache == (NoCacheOptions() if drawn == "exact" else presets[drawn])
    output = JobOutput(np.zeros((0, 8, 8, 3), np.uint8), None, 0.0, 0.0, 0.0)
    warnings = result_of(request, output, 1.0, replace(MODEL, kind="folder"), presets).warnings
    (warning,) = [warning for warning in warnings if "quality" in warning]
    assert f"`{drawn}`" in warning
    assert word in warning or "no preset" in warning


async def test_an_engine_tells_what_it_drew_as_what() -> None:
    engine = Engine(SETTINGS, FakeGang)
    for word, told in (("hd", ["`quality: hd` is not a preset here; the nearest, `exact`, was used"]), ("auto", [])):
        call, running = await started(engine, quality=word)
        finish(running)
        assert [warning for warning in (await call).warnings if "quality" in warning] == told


def test_a_word_that_has_its_preset_says_nothing() -> None:
    for word in (*PRESET_NAMES, "low", "medium", "auto"):
        assert quality_warnings(word, POLICY.presets) == []
    beside = resolved(quality="hd", cache=DBCacheOptions())
    assert quality_warnings(beside.quality, POLICY.presets) == []  # the cache that was sent drew it
    assert quality_warnings("fast", {}) == []  # gone while the job waited


def test_our_own_words_are_no_others() -> None:
    for word in ("balanced", "fast"):
        with pytest.raises(RequestError, match=f"no preset '{word}'; nearest legal values: exact, auto") as caught:
            resolved(EXACT, quality=word)
        assert caught.value.param == "quality"


def test_a_preset_that_does_not_fit_blames_the_quality_that_was_sent() -> None:
    """`cache.Fn_compute_blocks` was what the client never sent."""
    small = replace(MODEL, num_blocks=5)
    with pytest.raises(RequestError, match="its preset does not fit this model: Fn_compute_blocks") as caught:
        resolve(GenerationRequest(prompt="a", quality="high"), POLICY, small, model_name="flux", ranks=1)
    assert caught.value.param == "quality"
    assert "cache." not in caught.value.message
    settings = AppSettings.model_validate({"model": {"path": "x"}, "parallel": {"ranks_per_replica": 1}})
    with pytest.raises(ValueError, match=r"presets\.high does not fit the model: Fn_compute_blocks"):
        check_deployment(settings, POLICY.model_copy(update={"cache": NoCacheOptions()}), small)


def test_settings_name_a_presets_file(tmp_path: Path) -> None:
    (file := tmp_path / "presets.yaml").write_text("model: x\nsource: y\npresets: {fast: {type: FBCache}}\n")
    settings = AppSettings.model_validate({"model": {"path": "noise", "presets": str(file)}})
    assert list(settings.policy.presets) == ["fast"]


def test_unknown_words_are_reported_for_the_bundled_model_only() -> None:
    request = replace(resolved(), prompt="a red cat")
    output = JobOutput(np.zeros((0, 8, 8, 3), np.uint8), None, 0.0, 0.0, 0.0)
    (warning,) = [w for w in result_of(request, output, 1.0, MODEL).warnings if "unknown" in w]
    assert "'cat'" in warning
    other = replace(MODEL, kind="folder")
    assert not [w for w in result_of(request, output, 1.0, other).warnings if "unknown" in w]


def test_presets_are_of_one_quantization(tmp_path: Path) -> None:
    quantized = load_presets("black-forest-labs/FLUX.1-dev", quantization="fp8")
    assert quantized.presets == {"exact": NoCacheOptions()}
    assert "with quantization fp8" in quantized.source
    assert "--quantization fp8" in quantized.source
    file = tmp_path / "presets.yaml"
    body = {"model": "x", "source": "measured", "quantization": "fp8", "presets": {"fast": {"type": "FBCache"}}}
    for told, given, warned in (("fp8", "fp8", False), ("fp8", "none", True), ("none", "int8", True)):
        file.write_text(yaml.safe_dump(body | {"quantization": told}))
        model = {"path": "x", "quantization": given, "presets": str(file)}
        settings = AppSettings.model_validate({**SETTINGS.model_dump(exclude={"model"}), "model": model})
        assert set(settings.policy.presets) == {"fast"}, "used as the operator says"
        capabilities = Capabilities("folder", 57, 4, 64, "FluxPipeline", 16, quantization=given)
        said = [words for words in deployment_warnings(settings, settings.policy, capabilities) if "is for" in words]
        assert bool(said) == warned
        assert all(f"for quantization {told}" in words and f"--quantization {given}" in words for words in said)
