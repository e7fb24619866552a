"""Presets: words of a request become cache options; the bundled files are sound; tune writes what is read here."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cache_core.options import DBCacheOptions, NoCacheOptions, check_block_count
from raycache.presets import PRESET_NAMES, Presets, load_presets, preset_of

FILES = sorted((Path(__file__).parents[2] / "raycache" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bundled_files_name_every_preset_and_fit_flux(file: Path) -> None:
    presets = load_presets("anything", file)
    assert tuple(presets.presets) == PRESET_NAMES
    assert presets.presets["exact"] == NoCacheOptions()
    for options in presets.presets.values():
        check_block_count(options, 57)


def test_a_model_finds_its_file_and_others_take_flux_dev() -> None:
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
