"""Metrics as data: one spec each, used for the metric objects and the tables in the documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast, overload

from ray.util.metrics import Metric

__all__ = ["Spec", "Specified"]

M = TypeVar("M", bound=Metric)


@dataclass(frozen=True)
class Spec(Generic[M]):
    """One metric. It is in the body of a :class:`Specified` class, whose instances have the metric object instead.

    Attributes:
        kind: Serve's Counter, Gauge or Histogram.
        name: in Ray; scraped as ``ray_<name>``.
        help: one or two sentences; includes the values of a label if they are few.
        labels: names of the tags of every value.
        boundaries: upper bounds of a histogram's buckets, in the unit of the name.
    """

    kind: type[M]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    def made(self) -> M:
        """Create the metric object of this process."""
        # Not type-checked: Serve's types allow only one tag, but any number works.
        options: dict[str, Any] = {"tag_keys": self.labels}
        if self.boundaries:
            options["boundaries"] = list(self.boundaries)
        return self.kind(self.name, self.help, **options)

    @overload
    def __get__(self, instance: None, owner: type) -> Spec[M]: ...
    @overload
    def __get__(self, instance: Specified, owner: type) -> M: ...
    def __get__(self, instance: Specified | None, owner: type) -> Spec[M] | M:
        return self if instance is None else cast(M, instance.made[self.name])


class Specified:
    """The metrics of one process: creates all specs in the body of its class.

    Attributes:
        specs: the specs, in the order of the body.
        made: the metric objects, by name.
    """

    specs: ClassVar[tuple[Spec[Any], ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.specs = tuple(value for value in vars(cls).values() if isinstance(value, Spec))

    def __init__(self) -> None:
        self.made: dict[str, Metric] = {spec.name: spec.made() for spec in self.specs}
