"""Which family a model belongs to, by the class name of its pipeline.

A family is imported when a model of it is met. A new one is a file and a line here.
"""

from __future__ import annotations

import functools
from importlib import import_module

from raycache.models.family import ModelFamily, OwnModel

__all__ = ["family_of", "own_model"]

#: Class name of a diffusers pipeline: import path of its family.
_FAMILIES = {"FluxPipeline": "raycache.models.flux:FluxFamily"}
#: Models that this project makes, by the word that settings and their marker files have for them. Named and not
#: imported: they are built upon their family, and this room knows nothing above it.
_OWN = {"demo": "raycache.demo.family:DemoFamily", "noise": "raycache.demo.family:NoiseFamily"}
#: Folders of other FLUX pipelines (Kontext, img2img, ...) are loaded as this one; what it cannot load it refuses.
_OF_UNKNOWN = "FluxPipeline"


def family_of(pipeline: str, kind: str = "") -> ModelFamily:
    """The family of a model.

    Args:
        pipeline: class name of the model's pipeline; one that no family names is FLUX's.
        kind: of the model, as :class:`raycache.protocol.capabilities.Capabilities` has it; models of this project have
            their own words.
    """
    return _family(_OWN.get(kind) or _FAMILIES.get(pipeline) or _FAMILIES[_OF_UNKNOWN])


def own_model(path: str) -> OwnModel | None:
    """The model of this project that the settings' ``path`` names; None for any other."""
    family = _family(_OWN[path]) if path in _OWN else None
    return family if isinstance(family, OwnModel) else None


@functools.cache
def _family(where: str) -> ModelFamily:
    module, _, name = where.partition(":")
    family = getattr(import_module(module), name)()
    assert isinstance(family, ModelFamily), f"{where} is no ModelFamily"
    return family
