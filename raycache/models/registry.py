"""The family of a model, by the class name of its pipeline.

A family is imported when first used. A new one needs a file and a line here.
"""

from __future__ import annotations

import functools
from importlib import import_module

from raycache.models.family import ModelFamily, OwnModel

__all__ = ["FAMILIES", "family_of", "own_model"]

#: Class name of a diffusers pipeline: import path of its family.
FAMILIES = {
    "ChromaPipeline": "raycache.models.images:ChromaFamily",
    "CogVideoXPipeline": "raycache.models.videos:CogVideoXFamily",
    "Flux2KleinPipeline": "raycache.models.flux2:Flux2KleinFamily",
    "Flux2Pipeline": "raycache.models.flux2:Flux2Family",
    "Flux3DistilledModularPipeline": "raycache.models.flux3:Flux3DistilledFamily",
    "Flux3ModularPipeline": "raycache.models.flux3:Flux3Family",
    "FluxFillPipeline": "raycache.models.flux:FluxFillFamily",
    "FluxKontextPipeline": "raycache.models.flux:FluxKontextFamily",
    "FluxPipeline": "raycache.models.flux:FluxFamily",
    "HunyuanImagePipeline": "raycache.models.images:HunyuanImageFamily",
    "HunyuanVideo15Pipeline": "raycache.models.videos:HunyuanVideo15Family",
    "LTX2Pipeline": "raycache.models.videos:LTX2Family",
    "LTXPipeline": "raycache.models.videos:LTXFamily",
    "QwenImage21Pipeline": "raycache.models.qwen_image:QwenImage21Family",
    "QwenImageEditPipeline": "raycache.models.qwen_image:QwenImageEditFamily",
    "QwenImageEditPlusPipeline": "raycache.models.qwen_image:QwenImageEditPlusFamily",
    "QwenImagePipeline": "raycache.models.qwen_image:QwenImageFamily",
    "SanaPipeline": "raycache.models.images:SanaFamily",
    "StableDiffusion3Pipeline": "raycache.models.images:StableDiffusion3Family",
    "WanImageToVideoPipeline": "raycache.models.videos:WanImageFamily",
    "WanPipeline": "raycache.models.videos:WanFamily",
    "ZImagePipeline": "raycache.models.images:ZImageFamily",
}
#: Models made by this project, by the name that settings and their marker files use. By import path, because they are
#: built on their families in a package that this one must not import.
_OWN = {"demo": "raycache.demo.family:DemoFamily", "noise": "raycache.demo.family:NoiseFamily"}
#: For pipelines without a family: text to image, with what can be read from its files.
_UNKNOWN = "raycache.models.family:ModelFamily"


def family_of(pipeline: str, kind: str = "") -> ModelFamily:
    """The family of a model.

    Args:
        pipeline: class name of the model's pipeline; one without a family is run as it is.
        kind: of the model, as in :class:`raycache.protocol.capabilities.Capabilities`; models of this project have
            their own kinds.
    """
    return _family(_OWN.get(kind) or FAMILIES.get(pipeline) or _UNKNOWN)


def own_model(path: str) -> OwnModel | None:
    """The model of this project with the name ``path``; None for any other path."""
    family = _family(_OWN[path]) if path in _OWN else None
    return family if isinstance(family, OwnModel) else None


@functools.cache
def _family(where: str) -> ModelFamily:
    module, _, name = where.partition(":")
    family = getattr(import_module(module), name)()
    assert isinstance(family, ModelFamily), f"{where} is not a ModelFamily"
    return family
