"""Bodies of HTTP requests: the fields that determine the result, and others that OpenAI's clients send."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from raycache.protocol.errors import invalid
from raycache.protocol.schemas import GenerationRequest

__all__ = ["ImagesBody"]

#: Values of `quality` that the types of OpenAI's client no longer allow in a stream.
_RETIRED = {"standard": "medium", "hd": "high"}


class ImagesBody(GenerationRequest):
    """Body of ``POST /v1/images/generations``: a request, and other fields that OpenAI's clients send."""

    #: Prefix of the names of a stream's events, before the dot.
    events: ClassVar[str] = "image_generation"

    stream: bool = Field(default=False, description="Answer with server-sent events.")
    # Fields without support here are accepted with any value: clients send them to all servers.
    background: str | None = Field(default=None, description="Images are opaque: `transparent` gives a warning.")
    moderation: str | None = Field(default=None, description="Accepted and ignored with a warning.")
    style: str | None = Field(default=None, description="Accepted and ignored with a warning.")
    complexity: str | None = Field(default=None, description="Accepted and ignored with a warning.")
    frame_count: int | None = Field(default=None, description="Accepted and ignored with a warning: only for gif.")
    frame_duration_ms: int | None = Field(default=None, description="Accepted and ignored with a warning: gif only.")
    svg: dict[str, Any] | None = Field(default=None, description="Accepted and ignored with a warning: only for svg.")
    safety_identifier: str | None = Field(default=None, description="Accepted and ignored.")

    @field_validator("response_format", mode="before")
    @classmethod
    def _no_urls(cls, value: Any) -> Any:
        """OpenAI's other value. Not a ValueError, because pydantic's message would not give the reason."""
        if value == "url":
            raise invalid("response_format", "this server stores no files that a url could point to", ["b64_json"])
        return value

    def request(self) -> GenerationRequest:
        """The part that determines the image."""
        return GenerationRequest.model_validate({name: getattr(self, name) for name in GenerationRequest.model_fields})

    def ignored(self) -> list[str]:
        """One warning for each field that was set and has no effect."""
        idle = {"background": (None, "auto", "opaque"), "moderation": (None, "auto")}
        names = ("background", "moderation", "style", "complexity", "frame_count", "frame_duration_ms", "svg")
        said = [name for name in names if getattr(self, name) not in idle.get(name, (None,))]
        warnings = [f"`{name}` has no effect on this server" for name in said]
        if self.quality != "auto" and self.cache is not None:
            warnings.append("`quality` has no effect together with `cache`")
        if self.partial_images and not self.stream:
            warnings.append("`partial_images` has no effect without `stream: true`")
        if self.output_compression != 100 and self.output_format == "png":
            warnings.append("`output_compression` has no effect on png")
        return warnings

    def quality_told(self) -> str:
        """``quality`` as a stream repeats it, with retired values mapped to those of OpenAI's client."""
        return _RETIRED.get(self.quality, self.quality)
