"""Settings of the application: what ``args:`` in a ``serve run`` YAML may say.

Note for maintainers: Ray Serve passes the builder a pydantic model only if its annotation is a real class, so
``raycache.app`` must not use ``from __future__ import annotations``. This module may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from cache_core.options import CacheOptions, DBCacheOptions
from raycache.limits import DefaultSettings, LimitSettings
from raycache.origins import check_origin
from raycache.parallel_settings import ParallelSettings
from raycache.presets import PresetName, load_presets
from raycache.size import Size
from raycache.store_settings import StoreSettings
from raycache.strict import Strict as _Settings
from raycache.text_files import trimmed_within


class ModelSettings(_Settings):
    """Which model is served and how it is loaded."""

    name: str = Field(default="flux", description="Name that requests give as `model` and GET /v1/models lists.")
    path: str = Field(
        description="Folder in diffusers' layout, a Hugging Face hub id, `demo` (the bundled model) or `noise` "
        "(random weights, built in the cache folder at first start)."
    )
    revision: str | None = Field(default=None, description="Hub revision, for hub ids.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="Weights and activations.")
    cache_dir: Path | None = Field(
        default=None, description="Where hub downloads and the noise model are kept; default: the hub's own cache."
    )
    local_files_only: bool = Field(default=False, description="Never ask the hub, even for a missing file.")
    compile: bool = Field(default=False, description="torch.compile each transformer block (regional compilation).")
    presets: Path | None = Field(
        default=None, description="Presets file that `raycache.tune` wrote; default: the bundled one for this model."
    )
    max_sequence_length: int | None = Field(
        default=None, ge=8, le=512, description="Text tokens; default: what the model's T5 tokenizer says, at most 512."
    )


class WarmupShape(_Settings):
    """A request run before the replica reports ready, so that no user pays for allocation or compilation."""

    size: Size = Field(description="`WIDTHxHEIGHT` in pixels, generated before ready.")
    n: int = Field(default=1, ge=1, description="Images of that request: so many rows its transformer calls have.")
    num_inference_steps: int = Field(default=2, ge=1, description="At least; always past the cache's own warm-up.")


class ReliabilitySettings(_Settings):
    """How long things may take, and how often they may fail, before the service acts."""

    max_queued_requests: int = Field(
        default=32, ge=0, description="Jobs that may wait in one engine, besides those that may be under way."
    )
    max_queued_seconds: float = Field(default=120.0, gt=0, description="Predicted seconds of queued work admitted.")
    request_timeout_s: float = Field(default=300.0, gt=0, description="Deadline of a request that names none.")
    watchdog_floor_s: float = Field(default=5.0, gt=0, description="No progress for less than this is never a hang.")
    watchdog_steps: float = Field(
        default=3.0,
        gt=1,
        description="Hang = no progress for so many times what the step, encoding or decoding takes.",
    )
    watchdog_first_s: float = Field(
        default=120.0,
        gt=0,
        description="Patience where nothing can be known: the very first jobs, and steps of a new shape with "
        "`model.compile`.",
    )
    max_restarts: int = Field(
        default=5, ge=0, description="Gang restarts within `restart_window_s`; then Serve replaces it."
    )
    restart_window_s: float = Field(default=600.0, gt=0, description="Seconds over which restarts are counted.")
    drain_timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds a replica that is shut down may take to finish its admitted jobs."
    )
    health_check_period_s: float = Field(
        default=2.0, gt=0, description="Serve replaces a replica after three failed checks in a row."
    )


class Policy(_Settings):
    """What may change while the service runs: Serve's ``user_config`` of the engine, for jobs that come."""

    cache: CacheOptions
    presets: dict[PresetName, CacheOptions] = Field(default_factory=dict, description="What `quality` stands for.")
    defaults: DefaultSettings
    limits: LimitSettings
    max_queued_requests: int = Field(ge=0)
    max_queued_seconds: float = Field(gt=0)
    request_timeout_s: float = Field(gt=0)

    @property
    def max_job_seconds(self) -> float:
        """Predicted seconds that one job may take by itself."""
        return self.limits.max_job_seconds or self.max_queued_seconds

    @property
    def max_timeout_s(self) -> float:
        """The longest deadline that a request may name."""
        return max(self.limits.max_timeout_s, self.request_timeout_s)

    def changed(self, user_config: dict[str, Any]) -> Policy:
        """This policy with some fields replaced; ``defaults``, ``limits`` and ``presets`` field by field.

        Raises:
            pydantic.ValidationError: unknown field or illegal value.
        """
        values = self.model_dump()
        for name, value in trimmed_within(user_config).items():
            field_by_field = name in ("defaults", "limits", "presets") and isinstance(value, dict)
            values[name] = {**values[name], **value} if field_by_field else value
        return Policy.model_validate(values)


class AutoscalingSettings(_Settings):
    """How many engines run, by predicted seconds of queued work. One replica = one gang."""

    min_replicas: int = Field(
        default=1, ge=0, description="Engines kept; 0 = none while nothing is asked, and the first request waits."
    )
    max_replicas: int = Field(ge=1, description="Engines at most; each reserves a gang's GPUs.")
    target_queued_seconds: float = Field(
        default=30.0, gt=0, description="Predicted seconds of work that one engine may have queued."
    )
    upscale_delay_s: float = Field(default=10.0, ge=0, description="More must be wanted for so long, in seconds.")
    downscale_delay_s: float = Field(default=600.0, ge=0, description="Fewer must be wanted for so long, in seconds.")
    downscale_to_zero_delay_s: float | None = Field(
        default=None, ge=0, description="The same for the last engine; null = `downscale_delay_s`."
    )
    metrics_interval_s: float = Field(
        default=2.0, gt=0, description="Seconds between two reports of an engine; means of three are looked at."
    )

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingSettings:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}: swap them")
        return self


class IngressSettings(_Settings):
    """The HTTP front: validates, encodes, streams. Holds no GPU."""

    num_replicas: int = Field(
        default=1,
        ge=1,
        description="Ingresses; two outlive the death of one, more when encoding images is the limit.",
    )
    num_cpus: float = Field(default=0.5, gt=0, description="CPUs reserved per replica; encoding images uses them.")
    health_check_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds in which it must say that it lives; after three in a row Serve replaces it.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="File of bearer keys, one a line; read again when it changes; null = open."
    )
    cors_origins: list[Annotated[str, AfterValidator(check_origin)]] = Field(
        default_factory=list, description="Origins whose pages browsers let in (CORS), `*` for all; empty = none."
    )


class LoggingSettings(_Settings):
    """Logs of ingress, engine and ranks. Prompts are in none of them."""

    encoding: Literal["TEXT", "JSON"] = Field(default="TEXT", description="`JSON`: one object a line.")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least severe level.")


class AppSettings(_Settings):
    """Everything ``raycache.app:build`` needs. Every field can be set under ``args:`` in the YAML."""

    model: ModelSettings
    parallel: ParallelSettings = ParallelSettings()
    cache: CacheOptions = Field(default_factory=DBCacheOptions, description="Cache options of requests that name none.")
    defaults: DefaultSettings = DefaultSettings()
    limits: LimitSettings = LimitSettings()
    warmup: list[WarmupShape] = Field(default_factory=list)
    reliability: ReliabilitySettings = ReliabilitySettings()
    num_replicas: int = Field(default=1, ge=1, description="Engines; each reserves its own gang.")
    autoscaling: AutoscalingSettings | None = Field(
        default=None,
        description="Let the number of engines follow the queue, instead of `num_replicas`; null = do not.",
    )
    ingress: IngressSettings = IngressSettings()
    store: StoreSettings | None = Field(
        default=None, description="Keep jobs that nobody waits for: videos, asynchronous images; null = do not."
    )
    logging: LoggingSettings = LoggingSettings()

    @property
    def policy(self) -> Policy:
        """What the settings say about all that may change at run time."""
        keep = {"max_queued_requests", "max_queued_seconds", "request_timeout_s"}
        return Policy(
            cache=self.cache,
            presets=load_presets(self.model.path, self.model.presets).presets,
            defaults=self.defaults,
            limits=self.limits,
            **self.reliability.model_dump(include=keep),
        )

    @model_validator(mode="before")
    @classmethod
    def _reject_empty(cls, value: Any) -> Any:
        if isinstance(value, dict) and "model" not in value:
            raise ValueError(
                "`model` is required: give at least `model: {path: ...}` (a folder, a hub id, `demo` or `noise`)"
            )
        return value

    @model_validator(mode="after")
    def _one_number_of_engines(self) -> AppSettings:
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas and autoscaling exclude each other: leave num_replicas out")
        return self
