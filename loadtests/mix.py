"""The weighted mix of requests."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raycache.size import Size
from raycache.yaml_files import load_as

__all__ = ["Ask", "Mix", "load_mix"]


@dataclass(frozen=True)
class Ask:
    """One request to be sent.

    Attributes:
        kind: number of its entry in the mix; together with ``seed`` it determines the image.
        body: for ``POST /v1/images/generations``.
    """

    kind: int
    seed: int
    body: dict[str, Any]
    stream: bool

    @property
    def size(self) -> Size:
        """The size of each of its images."""
        return Size.parse(self.body["size"])


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weight: float = Field(gt=0)
    request: dict[str, Any]
    stream: bool = False

    @field_validator("request")
    @classmethod
    def _can_be_sent(cls, request: dict[str, Any]) -> dict[str, Any]:
        if missing := {"prompt", "size"} - set(request):
            raise ValueError(f"lacks {sorted(missing)}")
        try:
            Size.parse(str(request["size"]))  # only a string can be a size
        except ValueError:
            raise ValueError(f"size must be WIDTHxHEIGHT in ASCII, got {request['size']!r}") from None
        return request

    @property
    def work(self) -> str:
        """What determines its cost, in a few words."""
        request, cache = self.request, self.request.get("cache") or {}
        words = [str(request["size"])]
        if steps := request.get("num_inference_steps"):
            words.append(f"{steps} steps")
        if (count := request.get("n", 1)) != 1:
            words.append(f"{count} images")
        if kind := cache.get("type") if isinstance(cache, dict) else cache:
            words.append("no cache" if kind == "none" else str(kind))
        if preset := request.get("preset"):
            words.append(str(preset))
        return ", ".join([*words, *(["stream"] if self.stream else [])])


class Mix(BaseModel):
    """What users request.

    Attributes:
        seeds: number of different seeds for each entry.
        entries: bodies with their weights; each names ``prompt`` and ``size``.
    """

    model_config = ConfigDict(extra="forbid")

    seeds: int = Field(default=6, ge=1)
    entries: list[_Entry] = Field(min_length=1)

    @property
    def kinds(self) -> list[str]:
        """What each entry requests, with a number if several request the same."""
        works = [entry.work for entry in self.entries]
        several = {work for work in works if works.count(work) > 1}
        return [f"{work} (entry {number})" if work in several else work for number, work in enumerate(works, 1)]

    def draw(self, rng: random.Random) -> Ask:
        """A random request, by weight."""
        (kind,) = rng.choices(range(len(self.entries)), [entry.weight for entry in self.entries])
        entry, seed = self.entries[kind], rng.randrange(self.seeds)
        body = entry.request | {"seed": seed}
        return Ask(kind, seed, body | {"stream": True} if entry.stream else body, entry.stream)


def load_mix(path: Path) -> Mix:
    """The mix in a YAML file.

    Raises:
        ValueError: the file is not a valid mix; names the file, the line, the field and what is wrong.
    """
    try:
        return load_as(path, Mix, "request mix")
    except OSError as error:
        raise ValueError(f"request mix {path} cannot be read: {error.strerror}") from None
