"""Each production configuration against what is published of its model: it is legal there, and fits its card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from torch import nn

from raycache.models.folder import told_by
from raycache.models.registry import family_of
from raycache.models.roads import splits_unevenly
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.resolve import check_deployment
from raycache.protocol.sizes import check_size
from raycache.settings import AppSettings

FOLDER = Path(__file__).parents[3] / "serve_configs"
#: GB of an L20, less what CUDA, NCCL and a call's activations take.
ROOM_GB = 48 - 8


@dataclass(frozen=True)
class Published:
    """A model as its files on the hub describe it.

    Attributes:
        weights_gb: of all parts, in bfloat16.
        transformers: how many of diffusers' class with its usual sizes, for those whose quantized size is computed.
        encoder: billions of parameters of the text encoders, and of those in linear layers that are quantized.
    """

    pipeline: str
    blocks: int
    heads: int
    weights_gb: float
    transformers: int = 0
    encoder: tuple[float, float] = (0.0, 0.0)

    def quantized_gb(self, split_over: int) -> float:
        """On one card: as :attr:`weights_gb`, of a quantized model whose text encoders are, too."""
        family = family_of(self.pipeline)
        with torch.device("meta"):
            model = getattr(diffusers, family.transformer)()
        layers = re.compile(rf"(?:{'|'.join(family.quantized)})\.\d+\.(?!(?:.*\.)?(?:{'|'.join(family.kept)})).*")
        linear = [module for name, module in model.named_modules() if layers.fullmatch(f"{name}.weight")]
        saved = sum(each.weight.numel() for each in linear if isinstance(each, nn.Linear)) / 1e9
        parameters, in_layers = self.encoder
        encoders = (2 * parameters - in_layers) / split_over
        return self.weights_gb - self.transformers * saved - 2 * parameters + encoders


MODELS = {
    "black-forest-labs/FLUX.1-dev": Published("FluxPipeline", 57, 24, 34),
    "black-forest-labs/FLUX.1-Kontext-dev": Published("FluxKontextPipeline", 57, 24, 34),
    "black-forest-labs/FLUX.1-Fill-dev": Published("FluxFillPipeline", 57, 24, 34),
    "black-forest-labs/FLUX.2-klein-4B": Published("Flux2KleinPipeline", 25, 24, 16),
    "Tongyi-MAI/Z-Image-Turbo": Published("ZImagePipeline", 30, 30, 20),
    "stabilityai/stable-diffusion-3.5-large": Published("StableDiffusion3Pipeline", 38, 38, 28),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": Published("WanPipeline", 30, 24, 23),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": Published("WanPipeline", 40, 40, 69, 2, (5.7, 4.6)),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": Published("WanImageToVideoPipeline", 40, 40, 69, 2, (5.7, 4.6)),
    "black-forest-labs/FLUX.2-dev": Published("Flux2Pipeline", 56, 48, 113, 1, (24.0, 23.0)),
    "Qwen/Qwen-Image": Published("QwenImagePipeline", 60, 24, 58, 1, (8.3, 6.5)),
    "Qwen/Qwen-Image-Edit-2509": Published("QwenImageEditPlusPipeline", 60, 24, 58, 1, (8.3, 6.5)),
    "hunyuanvideo-community/HunyuanImage-2.1-Diffusers": Published("HunyuanImagePipeline", 60, 28, 54, 1, (8.5, 6.5)),
    "Qwen/Qwen-Image-2.1": Published("QwenImage21Pipeline", 32, 32, 31),
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": Published("HunyuanVideo15Pipeline", 54, 16, 37),
    "Lightricks/LTX-2": Published("LTX2Pipeline", 48, 32, 68, 1, (12.2, 10.8)),
}


def told(path: str) -> Capabilities:
    model = MODELS[path]
    family = family_of(model.pipeline)
    return told_by(
        family,
        {"scale_factor_spatial": 16} if "TI2V" in path else {},
        {"is_distilled": True} if "klein" in path else {},
        kind="folder",
        num_blocks=model.blocks,
        num_heads=model.heads,
        text_tokens=family.text,
        pipeline=model.pipeline,
        uneven=splits_unevenly(family.transformer),
    )


def one_model(file: Path) -> dict | None:
    args = yaml.safe_load(file.read_text())["applications"][0]["args"]
    return args if "model" in args and args["model"]["path"] != "demo" else None


PRODUCTION = [file for file in sorted(FOLDER.glob("*.yaml")) if one_model(file) is not None]


@pytest.mark.slow
@pytest.mark.parametrize("file", PRODUCTION, ids=lambda file: file.stem)
def test_it_fits_its_model_and_its_card(file: Path):
    settings = AppSettings.model_validate(one_model(file))
    assert settings.compiles
    model = told(settings.model.path)
    published, quantized = MODELS[settings.model.path], settings.model.quantization != "none"
    assert (published.weights_gb <= ROOM_GB) != quantized, "quantized where it must be"
    if quantized:
        assert settings.model.quantize_text_encoder
        split = settings.model.text_encoders == "split"
        assert published.quantized_gb(settings.parallel.ranks_per_replica if split else 1) <= ROOM_GB
        assert not split or published.quantized_gb(1) > ROOM_GB, "split where it must be"
    assert settings.parallel.accelerator_type == "L20"
    check_deployment(settings, settings.policy, model)
    for shape in settings.warmup:
        ranks = settings.parallel.ranks_per_replica
        most = settings.limits.max_pixels
        check_size(shape.size, side=model.token_side, ranks=ranks, max_pixels=most, uneven=model.uneven)


@pytest.mark.parametrize("file", PRODUCTION, ids=lambda file: file.stem)
def test_what_it_caches_can_save_something(file: Path):
    settings = AppSettings.model_validate(one_model(file))
    model, steps = told(settings.model.path), settings.defaults.num_inference_steps
    said = list(settings.cache.why_nothing_is_saved(steps, model.num_blocks))
    assert said == [] or settings.cache.type == "none"


def test_documents_name_every_model_s_configuration():
    guide = (FOLDER.parent / "docs" / "models.md").read_text().partition("**GPUs.**")[2]
    named = set(re.findall(r"`(\w+\.yaml)`", guide))
    assert named <= {file.name for file in FOLDER.glob("*.yaml")}
    others = {file.name for file in PRODUCTION if one_model(file)["model"]["path"] != "black-forest-labs/FLUX.1-dev"}
    assert others <= named
    readme = (FOLDER.parent / "README.md").read_text()
    assert [name for name in others if name not in readme] == []
