"""Settings of the application: what ``args:`` in a ``serve run`` YAML may say.

Note for maintainers: Ray Serve passes the builder a pydantic model only if its annotation is a real class, so
``raycache.app`` must not use ``from __future__ import annotations``. This module may.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cache_core.options import DBCacheOptions
from raycache.engine_settings import AutoscalingSettings, ReliabilitySettings
from raycache.filling import filled_up, said
from raycache.front_settings import IngressSettings, LoggingSettings
from raycache.limits import DefaultSettings, LimitSettings
from raycache.lora_settings import LoraName, LoraSettings
from raycache.model_names import ENGINE, ModelNames, deployment_name, wrong_names
from raycache.parallel_settings import ParallelSettings
from raycache.policy import Policy
from raycache.presets import load_presets
from raycache.presets.auto import AnyCache, concrete
from raycache.quantization import Quantization, card_misfit, dtype_misfit
from raycache.size import Size
from raycache.store_settings import StoreSettings
from raycache.strict import Strict as _Settings
from raycache.text_files import trimmed_within


class ModelSettings(_Settings):
    """Which model is served and how it is loaded."""

    name: str = Field(
        default="flux", min_length=1, description="Name that requests give as `model` and GET /v1/models lists."
    )
    path: str = Field(
        description="Folder in diffusers' layout, a Hugging Face hub id, `demo` (the bundled model) or `noise` "
        "(random weights, built in the cache folder at first start)."
    )
    revision: str | None = Field(default=None, description="Hub revision, for hub ids.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="Weights and activations.")
    cache_dir: Path | None = Field(
        default=None,
        description="Where hub downloads, the noise model and compiled blocks (in `compiled`) are kept; default: the "
        "hub's own cache, and `raycache` in the user's cache folder.",
    )
    local_files_only: bool = Field(default=False, description="Never ask the hub, even for a missing file.")
    quantization: Quantization = Field(
        default="none",
        description="Quantization of the linear layers in the transformers' blocks, by torchao: only weights "
        "(`int8_weight`, `fp8_weight`) or also activations (`int8`, `fp8`). For a folder that `raycache.quantize` "
        "made, set the value that it was made with. Needs `pip install 'raycache[quant]'`, and `fp8` an L4, L20, L40S, "
        "H100 or later.",
    )
    quantize_text_encoder: bool = Field(
        default=False,
        description="Also quantize the weights of the text encoders, with 8-bit floats or integers as `quantization`.",
    )
    compile: bool | Literal["auto"] = Field(
        default="auto",
        description="Compile the transformers' blocks with torch.compile: `auto` = on `cuda` only.",
    )
    text_encoders: Literal["every_rank", "one_rank", "split", "cpu"] = Field(
        default="every_rank",
        description="Where prompts are encoded: on `every_rank`; on `one_rank`, the first, which alone loads the text "
        "encoders and sends the others the result; by the first with layers that are `split` over all ranks; or by it "
        "on its `cpu`, so that no GPU holds them.",
    )
    presets: Path | None = Field(
        default=None, description="Presets file that `raycache.tune` wrote; default: the bundled one for this model."
    )
    max_sequence_length: int | None = Field(
        default=None, ge=8, le=512, description="Text tokens; default: what the model's T5 tokenizer says, at most 512."
    )
    loras: dict[LoraName, LoraSettings] = Field(
        default_factory=dict,
        description="LoRAs by the name that requests give as `lora`. Needs `pip install 'raycache[lora]'`.",
    )
    lora_bytes: int = Field(
        default=2 << 30,
        ge=1,
        description="Bytes of loaded LoRAs on each rank; beyond it the least recently used are unloaded.",
    )

    @model_validator(mode="after")
    def _can_be_quantized(self) -> Self:
        if wrong := dtype_misfit(self.quantization, self.dtype):
            raise ValueError(wrong)
        if self.quantize_text_encoder and self.quantization == "none":
            raise ValueError("model.quantize_text_encoder needs model.quantization: it says with which 8 bits")
        if self.quantize_text_encoder and self.text_encoders == "cpu":
            raise ValueError("model.quantize_text_encoder is not for text_encoders: cpu; leave one of the two out")
        return self

    def compiles(self, device: str) -> bool:
        """Whether blocks are compiled on a device of this type."""
        return device == "cuda" if self.compile == "auto" else self.compile


class WarmupShape(_Settings):
    """A request run before the replica reports ready, so that no user pays for allocation or compilation."""

    size: Size = Field(description="`WIDTHxHEIGHT` in pixels, generated before ready.")
    n: int = Field(default=1, ge=1, description="Images of that request: the rows of its transformer calls.")
    num_inference_steps: int = Field(
        default=2, ge=1, description="At least this many; always past the cache's own warm-up."
    )
    num_frames: int = Field(default=1, ge=1, description="Frames of a video; 1 = the fewest possible.")


class EngineSettings(_Settings):
    """What the engines of one model need."""

    model: ModelSettings | None = None
    parallel: ParallelSettings = ParallelSettings()
    cache: AnyCache = Field(default_factory=DBCacheOptions, description="Cache options of requests that set none.")
    defaults: DefaultSettings = DefaultSettings()
    limits: LimitSettings = LimitSettings()
    warmup: list[WarmupShape] = Field(default_factory=list)
    reliability: ReliabilitySettings = ReliabilitySettings()
    num_replicas: int = Field(default=1, ge=1, description="Engines; each reserves its own gang.")
    autoscaling: AutoscalingSettings | None = Field(
        default=None,
        description="Let the number of engines follow the queue, instead of `num_replicas`; null = off.",
    )

    @property
    def engines_kept(self) -> int:
        """Engines that are there while nothing is asked."""
        return self.autoscaling.min_replicas if self.autoscaling else self.num_replicas

    @model_validator(mode="after")
    def _ranks_can_compute_with_it(self) -> Self:
        parallel = self.parallel
        if self.model and (wrong := card_misfit(self.model.quantization, parallel.device, parallel.accelerator_type)):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _one_number_of_engines(self) -> Self:
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas and autoscaling exclude each other: leave num_replicas out")
        return self


class ModelEntry(EngineSettings):
    """One of several models, with engines of its own."""

    model: ModelSettings


class ServiceSettings(EngineSettings):
    """What ``raycache.app:build`` takes: every field can be set under ``args:`` in the YAML."""

    ingress: IngressSettings = IngressSettings()
    store: StoreSettings | None = Field(
        default=None, description="Store of kept jobs: videos and asynchronous images; null = none."
    )
    logging: LoggingSettings = LoggingSettings()
    models: list[ModelEntry] | None = Field(
        default=None,
        min_length=1,
        description="Several models in place of `model`: each entry has the settings above for its own engines, except "
        "`ingress`, `store` and `logging`. What an entry leaves out is taken from beside `models`.",
    )
    aliases: dict[str, str] = Field(
        default_factory=dict,
        description="Other names that requests may give as `model`, each with the name of the model it stands for.",
    )
    default_model: str | None = Field(
        default=None, description="Model of requests that name none; null = the first of `models`."
    )

    @property
    def engines(self) -> tuple[AppSettings, ...]:
        """The settings of each model's engines, as those of a service that has this model only."""
        shared = {"ingress": self.ingress, "store": self.store, "logging": self.logging}
        entries: Iterable[EngineSettings] = self.models or (self,)
        return tuple(AppSettings.model_validate({**said(entry), **shared}) for entry in entries)

    @property
    def names(self) -> ModelNames:
        """What requests may give as `model`."""
        names = [entry.model.name for entry in self._entries]
        return ModelNames(names, self.aliases, self.default_model or names[0])

    def deployment(self, model: str) -> str:
        """Serve's name of the engines' deployment of a model."""
        return deployment_name(model) if self.models else ENGINE

    @property
    def _entries(self) -> Sequence[AppSettings | ModelEntry]:
        return self.models or self.engines

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = trimmed_within(value)
        one, several = (value.get(name) is not None for name in ("model", "models"))
        if one and several:
            raise ValueError(
                "`model` and `models` exclude each other: `model` is one model, `models` a list of several"
            )
        if not one and not several:
            raise ValueError(
                "`model` is required: give at least `model: {path: ...}` (a folder, a hub id, `demo` or `noise`), or "
                "`models`, a list of entries with one each"
            )
        if isinstance(value.get("models"), list):
            value["models"] = [
                filled_up(entry, value, set(ModelEntry.model_fields) - {"model"}) for entry in value["models"]
            ]
        return value

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        names = [entry.model.name for entry in self._entries]
        if wrong := list(wrong_names(names, self.aliases, self.default_model)):
            raise ValueError("; ".join(wrong))
        return self


class AppSettings(ServiceSettings):
    """The settings of a service of one model, which are also those of its engines, gangs and ranks."""

    model: ModelSettings
    models: None = None

    @property
    def engines(self) -> tuple[AppSettings, ...]:
        """This one."""
        return (self,)

    @property
    def compiles(self) -> bool:
        """Whether the ranks compile the transformers' blocks."""
        return self.model.compiles(self.parallel.device)

    @property
    def policy(self) -> Policy:
        """What the settings say about all that may change at run time."""
        keep = {"max_queued_requests", "max_queued_seconds", "request_timeout_s"}
        known = load_presets(self.model.path, self.model.presets, self.model.quantization)
        return Policy(
            cache=concrete(self.cache, known.curve),
            presets=known.presets,
            curve=known.curve,
            defaults=self.defaults,
            limits=self.limits,
            **self.reliability.model_dump(include=keep),
        )
