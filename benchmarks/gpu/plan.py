"""What to measure, and on which machine: the same for all sections of a run. Does not import torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, Self

__all__ = ["FLUX_DEV", "SMALL", "Device", "Facts", "Plan", "Shape"]

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Shape:
    """A FLUX transformer, and the image that it generates.

    Attributes:
        text_channels, pooled: widths of T5's and CLIP's part.
        tokens, text: numbers of tokens of the image and of the prompt.
        first, last: Fn and Bn of methods that have them.
        warmup: number of steps that methods always compute.
        sides: sides of the images that are decoded, in pixels.
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
#: A size that a CPU computes in a moment, with the same code.
SMALL = Shape(2, 4, 4, 32, 32, 16, 16, 8, "float32", 6, 1, 1, 2, (32,))


@dataclass(frozen=True)
class Plan:
    """The options of the command line.

    Attributes:
        small: a tiny model instead of FLUX.1-dev: a rehearsal, whose figures mean nothing.
        quick: one round, fewer variants.
        ranks: the maximum number; 0 = as many as there are GPUs.
        model: folder of a model whose gang is rebuilt; empty = a generated one with random weights.
    """

    device: Kind = "cuda"
    small: bool = False
    quick: bool = False
    ranks: int = 0
    model: str = ""

    @property
    def shape(self) -> Shape:
        """Shape of the model."""
        return SMALL if self.small else FLUX_DEV

    @property
    def rounds(self) -> int:
        """Number of timed images of each kind."""
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
        """The plan as JSON values."""
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
        devices: its GPUs; none if the CPU is measured.
        versions: of the packages that figures depend on, by name.
        problem: why CUDA cannot be used although it was requested; empty if it can.
    """

    devices: tuple[Device, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    cpu: str = ""
    cores: int = 1
    problem: str = ""

    @property
    def free(self) -> int:
        """Free bytes on the GPU that has the least."""
        return min((device.free for device in self.devices), default=0)

    @property
    def capability(self) -> tuple[int, int]:
        """The lowest compute capability of all GPUs; (0, 0) without GPUs."""
        return min((device.capability for device in self.devices), default=(0, 0))

    def signature(self) -> list[str]:
        """What must be equal for the figures of two runs to be in one report."""
        return [*(device.name for device in self.devices), self.versions.get("torch", ""), self.cpu]

    def to_json(self) -> str:
        """JSON for another process."""
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
