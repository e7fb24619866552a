"""What is to be measured on what: the same for all sections of a run. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, Self

__all__ = ["FLUX_DEV", "SMALL", "Device", "Facts", "Plan", "Shape"]

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Shape:
    """A FLUX transformer, and an image that it generates.

    Attributes:
        text_channels, pooled: widths of T5's and CLIP's part.
        tokens, text: of the image and of the prompt.
        first, last: Fn and Bn of methods that have them.
        warmup: steps that methods always compute.
        sides: of images that are decoded, in pixels.
    """

    doubles: int
    singles: int
    heads: int
    head_dim: int
    text_channels: int
    pooled: int
    tokens: int
    text: int
    dtype: Literal["bfloat16", "float32"]
    steps: int
    first: int
    last: int
    warmup: int
    sides: tuple[int, ...]

    @property
    def width(self) -> int:
        """Channels of a token inside the blocks."""
        return self.heads * self.head_dim


#: FLUX.1-dev, 1024 x 1024.
FLUX_DEV = Shape(19, 38, 24, 128, 4096, 768, 4096, 512, "bfloat16", 28, 8, 8, 8, (512, 1024, 2048))
#: What a CPU computes in a moment, with the same code.
SMALL = Shape(2, 4, 4, 32, 32, 16, 16, 8, "float32", 6, 1, 1, 2, (32,))


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line.

    Attributes:
        small: a tiny model in place of FLUX.1-dev: a rehearsal, whose figures say nothing.
        quick: one round, fewer variants.
        ranks: at most so many; 0 = as many as there are GPUs.
        model: folder of a model whose gang is rebuilt; empty = one with random weights, made on the spot.
    """

    device: Kind = "cuda"
    small: bool = False
    quick: bool = False
    ranks: int = 0
    model: str = ""

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return SMALL if self.small else FLUX_DEV

    @property
    def rounds(self) -> int:
        """Images of each kind that are timed."""
        return 1 if self.quick or self.small else 3

    def worlds(self, devices: int) -> list[int]:
        """Numbers of ranks to try, from 1: powers of two that divide the attention heads and have a GPU each.

        Args:
            devices: GPUs of this machine. A CPU runs two ranks.
        """
        most = 2 if self.device == "cpu" else devices
        most = min(most, self.ranks) if self.ranks else most
        return [world for world in (1, 2, 4, 8) if world <= most and self.shape.heads % world == 0]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Device:
    """One GPU: memory in bytes; ``capability`` is its compute capability, (8, 9) for an L20."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """The machine.

    Attributes:
        devices: its GPUs; none where the CPU is measured.
        versions: of what the figures depend on, by name.
        problem: why CUDA cannot be used though it was asked for; empty if it can.
    """

    devices: tuple[Device, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    cpu: str = ""
    cores: int = 1
    problem: str = ""

    @property
    def free(self) -> int:
        """Bytes free on the GPU that has least."""
        return min((device.free for device in self.devices), default=0)

    @property
    def capability(self) -> tuple[int, int]:
        """The lowest of all GPUs; (0, 0) without any."""
        return min((device.capability for device in self.devices), default=(0, 0))

    def signature(self) -> list[str]:
        """What must be alike for figures of two runs to stand in one report."""
        return [*(device.name for device in self.devices), self.versions.get("torch", ""), self.cpu]

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`."""
        values = json.loads(text)
        devices = tuple(
            Device(entry["name"], entry["total"], entry["free"], (entry["capability"][0], entry["capability"][1]))
            for entry in values.pop("devices")
        )
        return cls(devices=devices, **values)
