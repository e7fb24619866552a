"""Options of images that are generated together: the same for all, or thresholds for each.

A threshold affects only its own image. All other options of a method determine what the batch runs, or when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_core.options import CacheOptions

__all__ = ["combined", "without_thresholds"]


def without_thresholds(options: CacheOptions) -> dict[str, Any]:
    """What images must have in common to be generated together."""
    return options.model_dump(exclude=set(options.thresholds))


def combined(each: Sequence[CacheOptions]) -> dict[str, Any]:
    """All of them as plain JSON values; a threshold in which they differ is a list.

    Raises:
        ValueError: they differ in more than thresholds (the message names the options), or the list is empty.
    """
    if not each:
        raise ValueError("an empty list of options: give one for each image, or one for all")
    first = without_thresholds(each[0])
    for other in map(without_thresholds, each):
        if differing := sorted(name for name in first | other if first.get(name) != other.get(name)):
            raise ValueError(f"images of one batch may differ in thresholds only, these do in {', '.join(differing)}")
    dicts = [own.to_dict() for own in each]
    columns = {name: [own[name] for own in dicts] for name in dicts[0]}
    return {name: values if values != values[:1] * len(each) else values[0] for name, values in columns.items()}
