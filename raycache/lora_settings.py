"""The LoRAs that requests may name: `model.loras` in the settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from raycache.strict import Strict

__all__ = ["LoraName", "LoraSettings"]

#: The name of a LoRA in requests.
LoraName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class LoraSettings(Strict):
    """A LoRA that requests may name."""

    path: str = Field(
        min_length=1,
        description="A *.safetensors file, a folder with one, or a Hugging Face hub id; weights of text encoders in "
        "it are refused.",
    )
    weight_name: str | None = Field(default=None, description="The file in that folder, if it has several.")
    path_2: str | None = Field(
        default=None,
        min_length=1,
        description="As `path`, for the second transformer of a model that has two (Wan 2.2: for the steps with little "
        "noise). None: the second is left unchanged.",
    )
    weight_name_2: str | None = Field(default=None, description="The file in `path_2`, if it has several.")
    revision: str | None = Field(default=None, description="Hub revision, for hub ids; of both paths.")
    scale: float = Field(
        default=1.0, ge=-10, le=10, allow_inf_nan=False, description="Scale of requests that set none; 1 = as trained."
    )
