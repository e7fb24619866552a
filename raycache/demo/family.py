"""Families of the models made by this project: FLUX's architecture, with their own folders and warnings."""

from __future__ import annotations

from pathlib import Path

from raycache.demo import demo_model_path
from raycache.models.family import OwnModel
from raycache.models.flux import FluxFamily
from raycache.size import Size

__all__ = ["MOST_GUIDANCE", "TRAINED_SIZES", "DemoFamily", "NoiseFamily"]

#: The sizes that the bundled model was trained and measured at; the first one most.
TRAINED_SIZES = (Size(128, 128), Size(192, 192), Size(256, 256), Size(256, 128), Size(128, 256))

#: Guidance that the bundled model was trained for; above it, it draws rubble.
MOST_GUIDANCE = 10.0


class DemoFamily(FluxFamily, OwnModel):
    """The bundled model: it knows few words and few sizes."""

    def folder(self, cache: Path) -> Path:
        """The folder installed with this package."""
        return demo_model_path()

    def outline(self, cache: Path) -> Path | None:
        """As :meth:`folder`."""
        return demo_model_path()

    def guidance(self, guidance_scale: float, true_cfg_scale: float) -> float:
        """At most :data:`MOST_GUIDANCE`, and none under true CFG: the scales of both would multiply."""
        return 1.0 if true_cfg_scale > 1 else min(guidance_scale, MOST_GUIDANCE)

    def request_warnings(self, prompt: str, size: Size, guidance_scale: float, true_cfg_scale: float) -> list[str]:
        """Warnings from the model's card about such a request."""
        from raycache.demo.words import prompt_warnings

        warnings = prompt_warnings(prompt)
        if size not in TRAINED_SIZES:
            sizes = ", ".join(map(str, TRAINED_SIZES))
            reason = f"the bundled model was trained at {sizes}; at {size} fewer images match their prompts"
            warnings.append(f"size: {reason}")
        if (used := self.guidance(guidance_scale, true_cfg_scale)) != guidance_scale:
            reason = "has learned true CFG as guidance" if true_cfg_scale > 1 else f"knows 0 to {MOST_GUIDANCE:g}"
            warnings.append(
                f"guidance_scale: the bundled model {reason}; {used:g} is used instead of {guidance_scale:g}"
            )
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
