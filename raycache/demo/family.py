"""The models that this project makes, as families: FLUX by architecture, with folders and warnings of their own."""

from __future__ import annotations

from pathlib import Path

from raycache.demo import demo_model_path
from raycache.models.family import OwnModel
from raycache.models.flux import FluxFamily
from raycache.size import Size

__all__ = ["DEMO_SIZE", "DemoFamily", "NoiseFamily"]

#: What the bundled model was trained at, and measured at in its card.
DEMO_SIZE = Size(128, 128)


class DemoFamily(FluxFamily, OwnModel):
    """The bundled model: it knows few words and one size."""

    def folder(self, cache: Path) -> Path:
        """Installed with this package."""
        return demo_model_path()

    def outline(self, cache: Path) -> Path | None:
        """As :meth:`folder`."""
        return demo_model_path()

    def request_warnings(self, prompt: str, size: Size) -> list[str]:
        """What the model's card says of a request like this."""
        from raycache.demo.words import prompt_warnings

        warnings = prompt_warnings(prompt)
        if size != DEMO_SIZE:
            reason = f"the bundled model was trained at {DEMO_SIZE}; at {size} fewer pictures come out as asked"
            warnings.append(f"size: {reason}")
        return warnings


class NoiseFamily(FluxFamily, OwnModel):
    """Random weights, built where they are needed."""

    def folder(self, cache: Path) -> Path:
        """Built unless ``cache`` has it."""
        from raycache.demo.noise import build_noise_model

        return build_noise_model(_in(cache))

    def outline(self, cache: Path) -> Path | None:
        """None before it is built."""
        return _in(cache) if (_in(cache) / "model_index.json").is_file() else None


def _in(cache: Path) -> Path:
    return cache / "noise-flux"
