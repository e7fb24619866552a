"""The fast walk finds what torch's own, slow one finds."""

from __future__ import annotations

import pytest
from torch import nn

from cache_core.walking import all_modules
from tests.helpers.tiny_flux import tiny_flux


def _shared() -> nn.Module:
    """One module in two places, an empty place, and a module inside its own child."""
    norm = nn.LayerNorm(2)
    whole = nn.Sequential(nn.Sequential(norm, nn.Linear(2, 2)), norm, nn.Sequential(nn.Linear(2, 2)))
    whole.register_module("empty", None)
    whole[2].add_module("above", whole)
    return whole


@pytest.mark.parametrize("model", [tiny_flux, _shared])
def test_all_modules_are_found_once_and_in_order(model):
    module = model()
    found = all_modules(module)
    assert [id(own) for own in found] == [id(own) for own in module.modules()]
