"""Text encoders apart from their pipeline: on another device than it, and refused where something else needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTextModel, PreTrainedModel

from raycache.models.loading import load_pipeline
from raycache.models.text_encoders import (
    EncoderElsewhere,
    TextEncoders,
    TextEncodersFault,
    load_text_encoders,
    text_encoders_named,
)
from raycache.settings import ModelSettings
from tests.helpers.tiny_models import tiny_folder, tiny_pipe

CPU = torch.device("cpu")


def _apart(name: str, *, here: bool = True) -> tuple[Any, TextEncoders]:
    folder = tiny_folder(name)
    settings = ModelSettings(path=str(folder), dtype="float32")
    pipe = load_pipeline(settings, str(folder), CPU, without=text_encoders_named(folder))
    encoders = load_text_encoders(folder, pipe, here=here, encode_on=CPU, dtype=torch.float32, device=CPU)
    return pipe, encoders


def test_encoders_compute_where_they_are_whatever_the_pipeline_says():
    pipe, encoders = _apart("flux")
    pipe.transformer.to("meta")
    pipe.vae.to("meta")
    asked = {"prompt": "a red circle", "prompt_2": None, "max_sequence_length": 32}
    with torch.no_grad():
        expected = tiny_pipe("flux").encode_prompt(**asked, device=CPU)
        made = [
            encoders.encode(pipe, **asked, device=torch.device("meta")),  # as its own call says
            encoders.encode(pipe, **asked),
        ]
    for each in made:
        for tensor, same in zip(each, expected, strict=True):
            assert torch.equal(tensor, same)
    assert pipe.text_encoder is None
    assert type(pipe) is type(tiny_pipe("flux"))


def test_a_stand_in_tells_what_it_stands_for_and_nothing_else():
    _, encoders = _apart("flux", here=False)
    stand_in = encoders.stand_ins["text_encoder"]
    assert not encoders.modules
    assert isinstance(stand_in, CLIPTextModel | PreTrainedModel)
    assert stand_in.config.hidden_size == tiny_pipe("flux").text_encoder.config.hidden_size
    assert (stand_in.dtype, stand_in.device) == (torch.float32, CPU)
    assert not hasattr(stand_in, "_hf_hook")
    for use in (lambda: stand_in(torch.zeros(1)), lambda: stand_in.generate()):
        with pytest.raises(EncoderElsewhere, match=r"text_encoder\.\w+ outside of encode_prompt.*every_rank"):
            use()


def test_pipelines_that_encode_in_another_way_are_refused(tmp_path: Path):
    class Other(DiffusionPipeline):
        pass

    folder = tiny_folder("flux")
    with pytest.raises(TextEncodersFault, match=r"Other has no encode_prompt.*every_rank"):
        load_text_encoders(folder, Other(), here=True, encode_on=CPU, dtype=torch.float32, device=CPU)
    with pytest.raises(TextEncodersFault, match=r"no model_index\.json"):
        text_encoders_named(tmp_path)  # of a modular pipeline
    index: dict[str, Any] = {"_class_name": "DiTPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    for more, words in (
        ({}, "DiTPipeline has no separable text encoder"),
        ({"text_encoder": [None, None]}, "DiTPipeline has no separable text encoder"),
        ({"text_encoder": ["transformers", "Nobody"]}, "Nobody of transformers, which is not found"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index | more))
        with pytest.raises(TextEncodersFault, match=words):
            text_encoders_named(tmp_path)
