"""The public description of a model: its names, capabilities, values in force, and whether it serves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from raycache.model_names import ModelNames
from raycache.policy import Policy
from raycache.presets import PRESET_NAMES
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError

__all__ = ["ModelCard", "named"]


def named(models: ModelNames, asked: str | None) -> str:
    """Name of the model that a request means.

    Raises:
        RequestError: 404 if there is no such model; the message lists the existing ones.
    """
    name = models.find(asked)
    if name is None:
        message = f"model: this server does not have {str(asked)[:80]!r}; it has {models}"
        raise RequestError(404, message, "model", "model_not_found")
    return name


@dataclass(frozen=True)
class ModelCard:
    """One name in the list of models.

    Attributes:
        name: name that requests give as ``model``.
        alias_of: the model's own name if this is an alias, else None.
        aliases: all other names of the model.
        default: requests that name no model get this one.
        ready: whether a request would be served, or would start an engine.
        reason: why it is not ready, or ``asleep``; None while an engine serves.
        capabilities: the model's; None until an engine has reported them.
        ranks: number of ranks of one engine.
        policy: presets, defaults and limits in force.
    """

    name: str
    aliases: tuple[str, ...]
    default: bool
    ready: bool
    reason: str | None
    capabilities: Capabilities | None
    ranks: int
    policy: Policy
    alias_of: str | None = None

    def called(self, alias: str) -> ModelCard:
        """The card of the same model under an alias."""
        return replace(self, name=alias, alias_of=self.name)

    @property
    def presets(self) -> list[str]:
        """Values of ``quality``; ``exact`` always exists."""
        return [name for name in PRESET_NAMES if name == "exact" or name in self.policy.presets]

    @property
    def target_psnr(self) -> dict[str, float] | None:
        """The goals in dB that ``cache: {"type": "auto"}`` may have; None: not measured on this model."""
        curve = self.policy.curve
        return None if curve is None else {"min": curve.points[-1][0], "max": curve.points[0][0]}

    def document(self, created: int) -> dict[str, Any]:
        """OpenAI's ``Model`` with our fields.

        Args:
            created: ``time.time()`` in whole seconds.
        """
        return {
            "id": self.name,
            "object": "model",
            "created": created,
            "owned_by": "raycache",
            "alias_of": self.alias_of,
            "aliases": list(self.aliases),
            "default": self.default,
            "ready": self.ready,
            "reason": self.reason,
            "ranks": self.ranks,
            "capabilities": None if self.capabilities is None else _told(self.capabilities),
            "presets": self.presets,
            "target_psnr": self.target_psnr,
            "defaults": self.policy.defaults.model_dump(mode="json"),
            # The limits of keys are visible to the operator only.
            "limits": {
                **self.policy.limits.model_dump(mode="json", exclude={"keys"}),
                "max_job_seconds": self.policy.max_job_seconds,
                "max_timeout_s": self.policy.max_timeout_s,
            },
        }


def _told(capabilities: Capabilities) -> dict[str, Any]:
    """Capabilities as JSON; sizes must be multiples of a token's side."""
    fields = asdict(capabilities)
    return {"size_multiple": fields.pop("token_side"), **fields}
