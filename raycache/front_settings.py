"""Settings of the HTTP front, and of what all processes log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from raycache.origins import check_origin
from raycache.strict import Strict

__all__ = ["IngressSettings", "LoggingSettings"]


class IngressSettings(Strict):
    """The HTTP front: validates, encodes, streams. Holds no GPU."""

    num_replicas: int = Field(
        default=1,
        ge=1,
        description="Ingresses; two survive the death of one, more if encoding images is the bottleneck.",
    )
    num_cpus: float = Field(default=0.5, gt=0, description="CPUs reserved per replica; encoding images uses them.")
    health_check_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds in which it must answer a health check; after three failures in a row Serve replaces it.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="File of bearer keys, one per line; read again when it changes; null = open."
    )
    cors_origins: list[Annotated[str, AfterValidator(check_origin)]] = Field(
        default_factory=list,
        description="Origins whose pages may call the service from a browser (CORS), `*` for all; empty = none.",
    )
    playground: bool = Field(default=True, description="A page to try the service, at `/`; it is open to all.")


class LoggingSettings(Strict):
    """Logs of ingress, engine and ranks. They contain no prompts."""

    encoding: Literal["TEXT", "JSON"] = Field(default="TEXT", description="`JSON`: one object per line.")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least severe level.")
