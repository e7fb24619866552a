"""Tiny models of all families: their folders load as what they say, and draw what depends on prompt and seed."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image

from cache_core import FBCacheOptions, cache_session
from raycache.testing.tiny_models import TINY_FAMILIES, TinyFamily, build_tiny
from raycache.testing.tiny_models.__main__ import main
from tests.helpers.tiny_models import load_tiny, tiny_folder

SLOW = [name for name, family in TINY_FAMILIES.items() if family.slow]
#: One of each kind: an image, a text encoder with a chat, a video by two transformers.
QUICK = {"flux", "qwen-image", "wan-2.2"}
NAMES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in TINY_FAMILIES]
#: Where each image to edit is enlarged to a megapixel, as these modules' own function says.
ENLARGING = [pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus]


def image(kind: str) -> Image.Image:
    """A gradient; of a mask, the left half is to be kept."""
    rows, columns = np.mgrid[:64, :64].astype(np.uint8)
    if "mask" in kind:
        return Image.fromarray(np.where(columns < 32, 0, 255).astype(np.uint8))
    return Image.fromarray(np.stack([4 * rows, 4 * columns, 255 - 2 * rows - 2 * columns], axis=-1))


def draw(pipe: Any, family: TinyFamily, prompt: str, seed: int, steps: int = 2) -> np.ndarray:
    """What the pipeline's own call gives, as float32."""
    asked = {
        "prompt": prompt,
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
        **family.ask,
        **{name: image(name) for name in family.images},
    }
    if isinstance(pipe, ModularPipeline):
        assert set(asked) <= {each.name for each in pipe.blocks.inputs}
        return np.asarray(pipe(**asked, output="images"), np.float32)
    assert set(asked) <= set(inspect.signature(type(pipe).__call__).parameters)
    return np.asarray(next(iter(pipe(**asked).values())), np.float32)


@pytest.fixture
def enlarged_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image to edit is enlarged to 128x128, which takes a hundredth of the time and is drawn by the same code."""
    for module in ENLARGING:
        true = module.calculate_dimensions
        monkeypatch.setattr(module, "calculate_dimensions", lambda _, ratio, true=true: true(128 * 128, ratio))


@pytest.mark.slow
@pytest.mark.usefixtures("enlarged_less")
@pytest.mark.parametrize("name", NAMES)
def test_the_folder_loads_as_what_it_says_and_draws(name: str):
    family, folder = TINY_FAMILIES[name], tiny_folder(name)
    (index,) = folder.glob("*model_index.json")
    assert json.loads(index.read_text())["_class_name"] == family.pipeline
    pipe = load_tiny(folder)
    assert type(pipe).__name__ == family.pipeline

    one = draw(pipe, family, "a red circle", 7)
    channels = 4 if name == "qwen-image-2.1" else 3
    assert one.shape[-3:] == (family.ask["height"], family.ask["width"], channels)
    if "num_frames" in family.ask:
        assert one.shape[-4] == family.ask["num_frames"]
    assert np.isfinite(one).all()
    assert one.std() > 0.02, "a plain area shows nothing"
    for prompt, seed in (("a green square", 7), ("a red circle", 8)):
        assert np.abs(draw(pipe, family, prompt, seed) - one).max() > 0.01, f"nothing of {prompt!r}, {seed} is seen"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "threshold"), [("flux", 0.2), ("wan", 0.1), ("z-image-3-heads", 0.3), ("flux2-klein", 0.3), ("ltx2", 0.3)]
)
def test_blocks_differ_from_step_to_step_as_a_trained_models_do(name: str, threshold: float):
    """Thresholds of real models decide both ways here, and what is reused shows."""
    family = TINY_FAMILIES[name]
    pipe = DiffusionPipeline.from_pretrained(tiny_folder(name))
    pipe.set_progress_bar_config(disable=True)
    one = draw(pipe, family, "a red circle", 7, steps=8)
    options = FBCacheOptions(warmup_steps=1, residual_diff_threshold=threshold)
    np.testing.assert_array_equal(draw(pipe, family, "a red circle", 7, steps=8), one)
    with cache_session(pipe.transformer, options) as report:
        other = draw(pipe, family, "a red circle", 7, steps=8)
    decided = [image.cached for step in report.steps if step.step > 0 for image in step.images]
    assert set(decided) == {True, False}
    assert np.abs(other - one).max() > 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_an_image_to_edit_may_be_as_large_as_the_pipeline_makes_it(name: str):
    family = TINY_FAMILIES[name]
    pipe = DiffusionPipeline.from_pretrained(tiny_folder(name))
    tokens = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    assert np.isfinite(draw(pipe, family, "a red circle", 7)).all()
    assert set(tokens) == {4 + 1024}  # of 32x32 pixels each: the image, and a megapixel of input


def test_same_seed_same_bytes_and_the_global_generator_is_left_alone(tmp_path: Path):
    before = torch.get_rng_state()
    one, two, other = (build_tiny("flux", tmp_path / str(index), seed) for index, seed in enumerate((0, 0, 1)))
    assert torch.equal(torch.get_rng_state(), before)
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    weights = Path("transformer", "diffusion_pytorch_model.safetensors")
    assert (one / weights).read_bytes() != (other / weights).read_bytes()


def test_a_folder_of_another_model_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["flux", str(tmp_path / "here")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "here")
    assert main(["flux", str(tmp_path / "here")]) == 0
    assert main(["flux-fill", str(tmp_path / "here")]) == 1
    assert "'family': 'flux'" in capsys.readouterr().err


def test_an_unknown_family_is_told_which_there_are(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'flux9'; known: .*flux-fill"):
        build_tiny("flux9", tmp_path)
