"""Completes the settings of one of several models with those next to the list of models."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from pydantic import BaseModel

__all__ = ["filled_up", "said"]

#: Taken as a whole: cache options of two methods must not be mixed.
_WHOLE = frozenset({"cache", "warmup"})
#: They exclude each other: an entry with one of them inherits neither.
_NUMBER = frozenset({"num_replicas", "autoscaling"})


def filled_up(entry: Any, beside: Mapping[str, Any], names: Set[str]) -> Any:
    """``entry``, with missing settings taken from ``beside``; sections in both are merged field by field.

    Args:
        entry: as the user wrote it; if it is not a mapping, validation will report that.
        beside: settings for all entries.
        names: names of the settings that both may have.
    """
    if not isinstance(entry, dict):
        return entry
    names = names - {name for name in _NUMBER if _counted_otherwise(name, entry)}
    filled = dict(entry)
    for name in names & beside.keys():
        own, others = said(entry.get(name)), said(beside[name])
        if name not in entry:
            filled[name] = beside[name]
        elif name not in _WHOLE and isinstance(own, dict) and isinstance(others, dict):
            filled[name] = {**others, **own}
    return filled


def said(section: Any) -> Any:
    """The fields set in a section that is already settings; anything else unchanged."""
    if isinstance(section, BaseModel):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return section


def _counted_otherwise(name: str, entry: Mapping[str, Any]) -> bool:
    return name not in entry and bool(_NUMBER & entry.keys())
