"""Nothing that is looked at before a deployment speaks against a tiny model of any family."""

from __future__ import annotations

import pytest

from raycache.models.folder import capabilities_told, folder_faults
from raycache.protocol.resolve import check_deployment
from raycache.settings import AppSettings
from raycache.testing.tiny_models import TINY_FAMILIES
from tests.helpers.tiny_models import tiny_folder

#: A video, an edit, and a pipeline with a guider among its parts.
QUICK = {"wan", "wan-ti2v", "flux-fill", "hunyuan-image"}
NAMES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in TINY_FAMILIES]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_service_of_it_would_be_deployed(name: str):
    folder = tiny_folder(name)
    assert folder_faults(folder) == []
    model = capabilities_told(folder, None)
    assert model is not None
    assert model.pipeline == TINY_FAMILIES[name].pipeline
    if "wan" in name:
        assert model.token_side == (32 if name == "wan-ti2v" else 16)
    settings = AppSettings.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32"},
            "parallel": {"ranks_per_replica": 1, "device": "cpu"},
            "cache": {"type": "FBCache"},
            "defaults": {"size": "96x96"},
        }
    )
    check_deployment(settings, settings.policy, model)
