"""Families of the models made by this project: FLUX's architecture, with their own folders and warnings."""

from __future__ import annotations

from pathlib import Path

from raycache.demo import demo_model_path
from raycache.models.family import OwnModel
from raycache.models.flux import FluxFamily
from raycache.size import Size

__all__ = ["DEMO_SIZE", "DemoFamily", "NoiseFamily"]

#: The size at which the bundled model was trained and measured.
DEMO_SIZE = Size(128, 128)


class DemoFamily(FluxFamily, OwnModel):
    """The bundled model: it knows few words and one size."""

    def folder(self, cache: Path) -> Path:
        """The folder installed with this package."""
        return demo_model_path()

    def outline(self, cache: Path) -> Path | None:
        """As :meth:`folder`."""
        return demo_model_path()

    def request_warnings(self, prompt: str, size: Size) -> list[str]:
        """Warnings from the model's card about such a request."""
        from raycache.demo.words import prompt_warnings

        warnings = prompt_warnings(prompt)
        if size != DEMO_SIZE:
            reason = f"the bundled model was trained at {DEMO_SIZE}; at {size} fewer images match their prompts"
            warnings.append(f"size: {reason}")
        return warnings


class NoiseFamily(FluxFamily, OwnModel):
    """Random weights, built where needed."""

    def folder(self, cache: Path) -> Path:
        """The folder in ``cache``, built if missing."""
        from raycache.demo.noise import build_noise_model

        return build_noise_model(_in(cache))

    def outline(self, cache: Path) -> Path | None:
        """The folder in ``cache``; None before it is built."""
        return _in(cache) if (_in(cache) / "model_index.json").is_file() else None


def _in(cache: Path) -> Path:
    return cache / "noise-flux"
