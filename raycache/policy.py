"""What may change while the service runs, for jobs that come after the change."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cache_core.options import CacheOptions
from raycache.limits import DefaultSettings, LimitSettings
from raycache.presets import PresetName
from raycache.presets.auto import AnyCache, ForecastCurve, concrete
from raycache.strict import Strict as _Settings
from raycache.text_files import trimmed_within


class Policy(_Settings):
    """What may change while the service runs: Serve's ``user_config`` of the engine, for new jobs."""

    cache: CacheOptions
    presets: dict[PresetName, CacheOptions] = Field(default_factory=dict, description="What `quality` stands for.")
    curve: ForecastCurve | None = Field(default=None, description="What the model's thresholds give, for goals in dB.")
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

    def allowing(self, max_timeout_s: float | None) -> Policy:
        """This policy with another limit of deadlines; None: as it is."""
        if max_timeout_s is None:
            return self
        limits = self.limits.model_copy(update={"max_timeout_s": max_timeout_s})
        return self.model_copy(update={"limits": limits})

    def changed(self, user_config: dict[str, Any]) -> Policy:
        """This policy with some fields replaced; ``defaults``, ``limits`` and ``presets`` field by field.

        Raises:
            pydantic.ValidationError: unknown field or illegal value.
            GoalError: ``cache`` is a goal that cannot be met.
        """
        values = self.model_dump()
        for name, value in trimmed_within(user_config).items():
            field_by_field = name in ("defaults", "limits", "presets") and isinstance(value, dict)
            values[name] = {**values[name], **value} if field_by_field else value
        goal = _Goal.model_validate({name: values[name] for name in _Goal.model_fields})
        return Policy.model_validate({**values, "cache": concrete(goal.cache, goal.curve)})


class _Goal(_Settings):
    """What a user_config may say of the cache, and the curve that gives its goal a threshold."""

    cache: AnyCache
    curve: ForecastCurve | None
