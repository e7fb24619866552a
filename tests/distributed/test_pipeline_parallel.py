"""ParaAttention's Ulysses parallelism under this diffusers: the same picture from 4 ranks as from 1, and the mend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from raycache.demo.noise import build_noise_model
from raycache.para_attention import mend_is_needed
from raycache.settings import ModelSettings
from tests.distributed.ranks import RankError, run_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("models") / "noise", layers=2, single_layers=4)


@pytest.fixture(scope="module")
def three_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("models") / "heads", layers=1, single_layers=1, heads=3)


def _latents(pipe, width: int, height: int, images: int = 1) -> torch.Tensor:
    return pipe(
        "a red circle",
        width=width,
        height=height,
        num_inference_steps=3,
        num_images_per_prompt=images,
        generator=[torch.Generator().manual_seed(seed) for seed in range(images)],
        max_sequence_length=64,
        output_type="latent",
    ).images


def _one_rank_and_all(rank: int, world_size: int, folder: Path) -> dict[str, object]:
    """Draw the same pictures before and after the transformer is split over the ranks."""
    from diffusers import FluxPipeline

    from raycache.para_attention import parallelize
    from raycache.pipeline import load_pipeline

    settings = ModelSettings(path=str(folder), dtype="float32")
    pipe, other = (load_pipeline(settings, str(folder), torch.device("cpu")) for _ in range(2))
    shapes = [(64, 64, 1), (96, 64, 2)]
    alone = [_latents(pipe, *shape) for shape in shapes]
    parallelize(pipe.transformer)
    together = [_latents(pipe, *shape) for shape in shapes]
    classes_untouched = not hasattr(FluxPipeline, "_is_parallelized") and not getattr(
        other.transformer, "_is_parallelized", False
    )
    return {"alone": alone, "together": together, "classes_untouched": classes_untouched}


def _parallelize(rank: int, world_size: int, folder: Path) -> None:
    from raycache.para_attention import parallelize
    from raycache.pipeline import load_pipeline

    parallelize(load_pipeline(ModelSettings(path=str(folder)), str(folder), torch.device("cpu")).transformer)


def test_four_ranks_draw_what_one_draws(model: Path):
    answers = run_ranks(4, _one_rank_and_all, model)
    for answer in answers:
        for alone, together in zip(answer["alone"], answer["together"], strict=True):
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        assert answer["classes_untouched"], "another pipeline in this process must stay as it was"
    spread = answers[0]["alone"][0].std()
    assert spread > 0.1, "latents that are all alike would be equal for the wrong reason"


def test_heads_that_do_not_divide_are_named(three_heads: Path):
    with pytest.raises(RankError, match="3 attention heads") as caught:
        run_ranks(2, _parallelize, three_heads)
    assert caught.value.kind == "ValueError"


def test_the_mend_is_still_needed():
    """When this fails, the installed ParaAttention takes ``enable_gqa``: delete the mend."""
    from para_attn.para_attn_interface import UnifiedAttnMode

    assert mend_is_needed()
    q = torch.zeros(1, 1, 1, 8)
    with pytest.raises(TypeError, match="enable_gqa"), UnifiedAttnMode(_mesh_of_one()):
        F.scaled_dot_product_attention(q, q, q, enable_gqa=False)


def _mesh_of_one():
    """What ParaAttention needs of a mesh before it looks at its ranks: the names of its dimensions."""
    import torch.distributed as dist

    class Mesh(dist.DeviceMesh):
        mesh_dim_names = ("ulysses",)

        def __init__(self) -> None: ...

        def __getitem__(self, name: str) -> Mesh:
            return self

    return Mesh()
