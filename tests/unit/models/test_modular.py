"""Modular pipelines: looked at before they are loaded, loaded from their folder alone, guided job by job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from raycache.models.arguments import parameters_of_call, pipelines_of
from raycache.models.folder import capabilities_told, folder_faults, pipeline_class
from raycache.models.loading import capabilities_of, load_pipeline
from raycache.models.registry import family_of
from raycache.models.source import ModelNotFound, prepare_model
from raycache.settings import ModelSettings
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from tests.helpers.ticks import draw
from tests.helpers.tiny_models import tiny_folder, tiny_job, tiny_pipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that may be broken."""
    return Path(shutil.copytree(tiny_folder("flux3"), tmp_path / "flux3"))


def settings(folder: Path) -> ModelSettings:
    return ModelSettings(path=str(folder), dtype="float32")


def test_what_its_files_tell_is_what_it_is_when_loaded(folder: Path):
    """Its index names a repository, which is not asked for anything."""
    assert prepare_model(settings(folder)) == (str(folder), "folder")
    assert pipeline_class(folder) == "Flux3ModularPipeline"
    assert folder_faults(folder) == []
    pipe = load_pipeline(settings(folder), str(folder), torch.device("cpu"))
    assert capabilities_told(folder, None) == capabilities_of(pipe, settings(folder), "folder")
    pipes = pipelines_of(pipe, family_of("Flux3ModularPipeline"))
    assert set(pipes) == {"text-to-image", "edit"}
    assert all(each.transformer is pipe.transformer for each in pipes.values())
    assert "image" in parameters_of_call(pipes["edit"])
    assert "image" not in parameters_of_call(pipes["text-to-image"])


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("vae/config.json", "has no vae/config.json"),
        ("text_encoder/model.safetensors", "text_encoder has no weights"),
        ("tokenizer", "has no tokenizer/*"),
    ],
)
def test_what_it_lacks_is_told_before_it_is_loaded(folder: Path, lost: str, told: str):
    part = folder / lost
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    (fault,) = folder_faults(folder)
    assert told in fault


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["SequentialPipelineBlocks", "SomebodysBlocks"])
def test_blocks_that_somebody_put_together_are_the_usual_ones(folder: Path, blocks: str):
    index = json.loads((folder / "modular_model_index.json").read_text()) | {"_blocks_class_name": blocks}
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    pipe = load_pipeline(settings(folder), str(folder), torch.device("cpu"))
    assert type(pipe.blocks).__name__ == "Flux3AutoBlocks"
    assert "prompt_upsampler" not in pipe.components


def test_a_part_that_cannot_be_loaded_is_named(folder: Path):
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(OSError, match="vae could not be loaded"):
        load_pipeline(settings(folder), str(folder), torch.device("cpu"))


def test_another_transformer_is_refused_by_name(folder: Path):
    index = json.loads((folder / "modular_model_index.json").read_text())
    index["transformer"] = ["diffusers", "Flux2Transformer2DModel", {}]
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    (fault,) = folder_faults(folder)
    assert "Flux3ModularPipeline with Flux2Transformer2DModel; a model of FLUX.3 has Flux3Transformer2DModel" in fault


def test_a_folder_without_any_index_is_no_model(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        prepare_model(settings(tmp_path))


@pytest.mark.slow
def test_each_job_is_guided_by_its_own_scale():
    pipe, family = tiny_pipe("flux3"), family_of("Flux3ModularPipeline")
    usual = pipe.guider.guidance_scale
    context = RankContext(pipe, family, 0, torch.device("cpu"), 80, pipes=pipelines_of(pipe, family))
    task = "text-to-image"
    jobs = {tiny_job("flux3", task, str(scale), steps=2, guidance_scale=scale): 0 for scale in (1.0, 2.0, 5.0)}
    drawn = draw(JobRunner(context, None), jobs).outputs
    alone = {job.id: draw(JobRunner(context, None), {job: 0}).outputs[job.id] for job in jobs}
    for name in alone:
        assert np.abs(drawn[name].images.astype(int) - alone[name].images).max() <= 1
    assert np.abs(drawn["2.0"].images.astype(int) - drawn["5.0"].images).max() > 5
    assert pipe.guider.guidance_scale == usual
