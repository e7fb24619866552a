"""Families: found by name without torch, and what stands in for those that nobody described."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from PIL import Image

from raycache.demo.family import DemoFamily, NoiseFamily
from raycache.models.denoisers import denoisers_of
from raycache.models.family import ModelFamily
from raycache.models.folder import capabilities_told, folder_faults, pipeline_class
from raycache.models.loading import capabilities_of
from raycache.models.registry import FAMILIES, family_of, own_model
from raycache.settings import ModelSettings
from raycache.testing.tiny_models import TINY_FAMILIES
from tests.helpers.tiny_models import load_tiny, tiny_folder


def test_asking_families_loads_neither_torch_nor_diffusers():
    code = """
import sys
from pathlib import Path
from raycache.models.folder import folder_faults
from raycache.models.registry import family_of, own_model
from raycache.size import Size
family_of("FluxPipeline").num_blocks({"num_layers": 1, "num_single_layers": 2})
family_of("FluxPipeline", "demo").request_warnings("a red circle", Size(64, 64), 3.5, 1.0)
assert own_model("noise").outline(Path("/nowhere")) is None
assert not folder_faults(own_model("demo").folder(Path("/nowhere")))
print(sorted({"torch", "diffusers", "transformers"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("kind", ["folder", "hub", ""])
@pytest.mark.parametrize("pipeline", ["StableDiffusionXLPipeline", "None", ""])
def test_what_no_family_names_is_run_as_it_is(pipeline: str, kind: str):
    assert type(family_of(pipeline, kind)) is ModelFamily


MODULAR = [name for name in FAMILIES if "Modular" in name]


@pytest.mark.parametrize("pipeline", MODULAR)
def test_every_modular_pipeline_that_is_named_is_one_of_diffusers(pipeline: str):
    family, of = family_of(pipeline), getattr(diffusers, pipeline)
    assert issubclass(of, diffusers.ModularPipeline)
    blocks = getattr(diffusers, of.default_blocks_name)()
    assert set(family.left_out) <= set(blocks.sub_blocks)
    for workflow in family.tasks.values():
        inputs = {each.name for each in blocks.get_workflow(workflow).inputs}
        assert family.negative_prompt == ("negative_prompt" in inputs)
        assert ("image" in inputs) == (workflow == family.tasks["edit"])


@pytest.mark.parametrize("pipeline", [name for name in FAMILIES if name not in MODULAR])
def test_every_pipeline_that_is_named_is_one_of_diffusers(pipeline: str):
    family = family_of(pipeline)
    for name in (pipeline, *family.tasks.values()):
        assert issubclass(getattr(diffusers, name), diffusers.DiffusionPipeline)
    signature = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    assert not family.negative_prompt or "negative_prompt" in signature
    assert family.true_cfg == ("true_cfg_scale" in signature) or pipeline == "FluxPipeline"
    assert bool(family.frame_step) == ("num_frames" in signature)


def test_models_of_this_project_are_known_by_their_kind():
    assert type(family_of("FluxPipeline", "demo")) is type(own_model("demo")) is DemoFamily
    assert type(family_of("FluxPipeline", "noise")) is type(own_model("noise")) is NoiseFamily
    assert own_model("black-forest-labs/FLUX.1-dev") is None
    assert own_model("FluxPipeline") is None


def test_a_pipeline_with_another_transformer_is_refused_by_name(tmp_path: Path):
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "QwenImageTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    told = "FluxPipeline with QwenImageTransformer2DModel; a model of FLUX has FluxTransformer2DModel"
    assert folder_faults(tmp_path) == [f"{tmp_path} contains {told}"]
    assert capabilities_told(tmp_path, None) is None


@pytest.mark.parametrize("text", ["", "[]", "7", '{"transformer": 3}'])
def test_an_index_that_names_no_pipeline(tmp_path: Path, text: str):
    (tmp_path / "model_index.json").write_text(text)
    assert pipeline_class(tmp_path) == "None"


def test_the_bundled_model_tells_of_itself_before_it_is_loaded():
    folder = DemoFamily().folder(Path("/nowhere"))
    told = capabilities_told(folder, None)
    assert told is not None
    assert (told.num_blocks, told.num_heads, told.text_tokens, told.pipeline) == (20, 4, 16, "FluxPipeline")
    asked = capabilities_told(folder, 12)
    assert asked is not None
    assert asked.text_tokens == 12


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, tiny in TINY_FAMILIES.items() if not tiny.slow])
def test_a_pipeline_makes_as_many_calls_as_are_expected_of_it(name: str):
    """Before it is loaded and after; a distilled FLUX.2 klein makes one a step whatever its guidance."""
    folder, tiny = tiny_folder(name), TINY_FAMILIES[name]
    pipe, steps, made = load_tiny(folder), 3, []
    loaded = capabilities_of(pipe, ModelSettings(path=str(folder)), "folder")
    asked = dict(tiny.ask) | dict.fromkeys(tiny.images, Image.new("RGB", (64, 64), "red"))
    if "guidance_scale" in inspect.signature(type(pipe).__call__).parameters:  # else a guider of its own has one
        asked["guidance_scale"] = 4.0
    if loaded.true_cfg:
        asked |= {"negative_prompt": "grey", "true_cfg_scale": 4.0}
    for denoiser in denoisers_of(pipe).values():
        denoiser.register_forward_pre_hook(lambda *_: made.append(1))
    pipe(prompt="a red circle", num_inference_steps=steps, **asked)
    expected = [
        told.calls_per_step(4.0, asked.get("true_cfg_scale", 1.0))
        for told in (loaded, capabilities_told(folder, None))
        if told is not None
    ]
    assert expected == [len(made) / steps] * len(expected)
    assert expected
