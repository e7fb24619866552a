"""Names of the models in one service: which one a request means, and the name of each model's deployment in Serve."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ENGINE", "ModelNames", "deployment_name", "wrong_names"]

#: Serve's name of the engines' deployment of a single `model`; with several models it is a prefix.
ENGINE = "Engine"
#: Serve joins the parts of a replica's name with `#`, and uses the name in names of log files.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class ModelNames:
    """What requests may give as `model`.

    Attributes:
        names: names of the models, in the order of the settings.
        aliases: other names, each for one of them.
        default: the model of a request that names none.
    """

    names: Sequence[str]
    aliases: Mapping[str, str]
    default: str

    def find(self, asked: str | None) -> str | None:
        """Name of the model that a request means; None if there is no such model."""
        if asked is None:
            return self.default
        name = self.aliases.get(asked, asked)
        return name if name in self.names else None

    def aliases_of(self, name: str) -> tuple[str, ...]:
        """Other names of a model, in the order of the settings."""
        return tuple(alias for alias, model in self.aliases.items() if model == name)

    def __iter__(self) -> Iterator[str]:
        """All accepted names: models, then aliases."""
        return iter((*self.names, *self.aliases))

    def __str__(self) -> str:
        return ", ".join(repr(name) for name in self)


def deployment_name(model: str) -> str:
    """Serve's name of the engines' deployment of one model of several: unsafe characters become ``-``.

    >>> deployment_name("black-forest-labs/FLUX.1-dev")
    'Engine-black-forest-labs-FLUX.1-dev'
    """
    return f"{ENGINE}-{_UNSAFE.sub('-', model)}"


def wrong_names(names: Sequence[str], aliases: Mapping[str, str], default: str | None) -> Iterator[str]:
    """Errors in the names of a service's models; empty if there are none.

    Args:
        names: names of the models, in order.
        aliases: other names.
        default: the model of requests that name none; None: the first.
    """
    known = ", ".join(repr(name) for name in dict.fromkeys(names))
    for name in _repeated(names):
        places = " and ".join(str(place) for place, one in enumerate(names, 1) if one == name)
        yield f"models: entries {places} share the name {name!r}; give each its own `model.name`"
    for name in _repeated([deployment_name(name) for name in dict.fromkeys(names)]):
        both = ", ".join(repr(one) for one in dict.fromkeys(names) if deployment_name(one) == name)
        yield f"models: {both} would all be the deployment {name!r} in Serve; rename one of them"
    for alias, model in aliases.items():
        if not alias:
            yield "aliases: an alias is empty, so no request could use it"
        elif alias in names:
            yield f"aliases.{alias}: a model has this name, and the alias would hide it; use another one"
        if model not in names:
            chain = f" ({model!r} is an alias itself)" if model in aliases else ""
            yield f"aliases.{alias}: must name a model{chain}: {known}; got {model!r}"
    if default is not None and default not in names:
        chain = f" instead of the alias of {aliases[default]!r}" if default in aliases else ""
        yield f"default_model: must name a model{chain}: {known}; got {default!r}"


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
