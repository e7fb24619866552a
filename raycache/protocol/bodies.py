"""Bodies of HTTP requests: the fields that decide the result, and others that OpenAI's clients may send."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from raycache.protocol.errors import invalid
from raycache.protocol.schemas import GenerationRequest

__all__ = ["ImagesBody"]

#: OpenAI's words for a stream's `quality` that its client's types no longer know.
_RETIRED = {"standard": "medium", "hd": "high"}


class ImagesBody(GenerationRequest):
    """Body of ``POST /v1/images/generations``: a request, and what OpenAI's clients may send besides."""

    #: What a stream's events are called before the dot.
    events: ClassVar[str] = "image_generation"

    stream: bool = Field(default=False, description="Answer with server-sent events.")
    # What OpenAI's client may send and this server cannot do is accepted, whatever it says: clients send it to all.
    background: str | None = Field(default=None, description="Images are opaque: `transparent` gives a warning.")
    moderation: str | None = Field(default=None, description="Accepted and ignored with a warning.")
    style: str | None = Field(default=None, description="Accepted and ignored with a warning.")
    complexity: str | None = Field(default=None, description="Accepted and ignored with a warning.")
    frame_count: int | None = Field(default=None, description="Accepted and ignored with a warning: of gif only.")
    frame_duration_ms: int | None = Field(default=None, description="Accepted and ignored with a warning: of gif only.")
    svg: dict[str, Any] | None = Field(default=None, description="Accepted and ignored with a warning: of svg only.")
    safety_identifier: str | None = Field(default=None, description="Accepted and ignored.")

    @field_validator("response_format", mode="before")
    @classmethod
    def _no_urls(cls, value: Any) -> Any:
        """OpenAI's other word. Raised past pydantic, whose list of faults would not say why."""
        if value == "url":
            raise invalid("response_format", "this server keeps no files that a url could name", ["b64_json"])
        return value

    def request(self) -> GenerationRequest:
        """The part that decides the image."""
        return GenerationRequest.model_validate({name: getattr(self, name) for name in GenerationRequest.model_fields})

    def ignored(self) -> list[str]:
        """One warning for each field that was set and has no effect."""
        idle = {"background": (None, "auto", "opaque"), "moderation": (None, "auto")}
        names = ("background", "moderation", "style", "complexity", "frame_count", "frame_duration_ms", "svg")
        said = [name for name in names if getattr(self, name) not in idle.get(name, (None,))]
        warnings = [f"`{name}` has no effect on this server" for name in said]
        if self.quality != "auto" and self.cache is not None:
            warnings.append("`quality` has no effect beside `cache`")
        if self.partial_images and not self.stream:
            warnings.append("`partial_images` has no effect without `stream: true`")
        if self.output_compression != 100 and self.output_format == "png":
            warnings.append("`output_compression` has no effect on png")
        return warnings

    def quality_told(self) -> str:
        """``quality`` as a stream repeats it, in words of OpenAI's client where it was one of those."""
        return _RETIRED.get(self.quality, self.quality)
