"""FLUX's attention that calls its processor at once: the same images to the bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_flux

from raycache.demo.noise import build_noise_model
from raycache.models.direct_attention import attend_directly
from raycache.models.loading import load_pipeline
from raycache.settings import ModelSettings
from tests.helpers.tiny_flux import Job, draw, tiny_flux


def test_images_are_equal_and_no_signature_is_read(monkeypatch: pytest.MonkeyPatch):
    model, plain = tiny_flux(1, 2), tiny_flux(1, 2)
    attend_directly(model)
    wanted = draw(plain, Job(steps=2))
    monkeypatch.setattr(transformer_flux, "inspect", None)
    torch.testing.assert_close(draw(model, Job(steps=2)), wanted, rtol=0, atol=0)
    with pytest.raises(AttributeError, match="signature"):
        draw(plain, Job(steps=2))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_its_own_weights(again: Callable[[Any], Any]):
    model = tiny_flux(1, 1)
    attend_directly(model)
    wanted = draw(model, Job(steps=1))
    twin = again(model)
    torch.testing.assert_close(draw(twin, Job(steps=1)), wanted, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(draw(twin, Job(steps=1)), wanted, rtol=0, atol=0)


def test_arguments_that_the_processor_does_not_take_are_left_out_as_before(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(transformer_flux.logger, "warning", told.append)
    model, plain = tiny_flux(1, 1), tiny_flux(1, 1)
    attend_directly(model)
    job = Job(steps=1, extra={"joint_attention_kwargs": {"unheard_of": 1}})
    torch.testing.assert_close(draw(model, job), draw(plain, job), rtol=0, atol=0)
    assert len(told) == 4
    assert all("unheard_of" in words for words in told)


@pytest.mark.slow  # the first import of the compiler
@pytest.mark.parametrize("compiles", [False, True])
def test_a_loaded_pipeline_has_it_unless_its_blocks_are_compiled(tmp_path: Path, compiles: bool):
    folder = build_noise_model(tmp_path / "model", layers=1, single_layers=1)
    settings = ModelSettings.model_validate({"path": str(folder), "dtype": "float32", "compile": compiles})
    pipe = load_pipeline(settings, str(folder), torch.device("cpu"))
    attention = [module for module in pipe.transformer.modules() if type(module).__name__ == "FluxAttention"]
    assert ["forward" in vars(module) for module in attention] == [not compiles] * 2
