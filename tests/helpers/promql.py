"""The part of PromQL that our alarms use, over invented series. The parser is Prometheus' own grammar."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import promql_parser as promql

__all__ = ["Series", "fires"]

#: A series without a sample for this long is stale.
_LOOK_BACK_S = 300.0
_COMPARE = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le, "==": operator.eq}
_ARITHMETIC = {"*": operator.mul, "+": operator.add, "-": operator.sub}
_AGGREGATE: dict[str, Callable[[list[float]], float]] = {"max": max, "min": min, "sum": sum}

#: Labels without the name, as sorted pairs, and the value.
Vector = dict[tuple[tuple[str, str], ...], float]


@dataclass(frozen=True)
class Series:
    """One series.

    Attributes:
        name: the metric's name.
        labels: its labels.
        value: the value at a time in seconds; None if there is no sample.
    """

    name: str
    labels: dict[str, str]
    value: Callable[[float], float | None]


def fires(expr: str, hold_s: float, series: list[Series], now: float, step_s: float = 15.0) -> bool:
    """Whether an alarm with this expression, to hold for ``hold_s`` seconds without gaps, fires at ``now``."""
    tree, held = promql.parse(expr), now - hold_s
    times = [held + step_s * k for k in range(int(hold_s / step_s) + 1)]
    return all(_vector(tree, series, time, step_s) for time in times)


def _vector(node: Any, series: list[Series], now: float, step_s: float) -> Vector:
    def inner(child: Any) -> Vector:
        return _vector(child, series, now, step_s)

    match type(node).__name__:
        case "ParenExpr":
            return inner(node.expr)
        case "VectorSelector":
            found = {}
            for one in _selected(node, series):
                if samples := _samples(one, now - _seconds(node.offset), _LOOK_BACK_S, step_s):
                    found[_key(one.labels)] = samples[-1]
            return found
        case "Call":
            return _called(node, series, now, step_s)
        case "AggregateExpr":
            groups: dict[tuple, list[float]] = {}
            by = set(node.modifier.labels) if node.modifier else set()
            for labels, value in inner(node.expr).items():
                groups.setdefault(tuple(pair for pair in labels if pair[0] in by), []).append(value)
            return {labels: _AGGREGATE[str(node.op)](values) for labels, values in groups.items()}
        case "BinaryExpr":
            return _binary(str(node.op), node.lhs, node.rhs, inner)
    raise NotImplementedError(f"{type(node).__name__}: {node}")


def _binary(op: str, left: Any, right: Any, inner: Callable[[Any], Vector]) -> Vector:
    if op == "or":
        return inner(right) | inner(left)
    if op == "unless":
        gone = inner(right)
        return {labels: value for labels, value in inner(left).items() if labels not in gone}
    if op in _COMPARE and isinstance(right, promql.NumberLiteral):
        return {labels: value for labels, value in inner(left).items() if _COMPARE[op](value, right.val)}
    if op in _COMPARE:
        other = inner(right)
        both = {labels: value for labels, value in inner(left).items() if labels in other}
        return {labels: value for labels, value in both.items() if _COMPARE[op](value, other[labels])}
    if op in _ARITHMETIC and isinstance(left, promql.NumberLiteral):
        return {labels: _ARITHMETIC[op](left.val, value) for labels, value in inner(right).items()}
    raise NotImplementedError(f"{left} {op} {right}")


def _called(node: Any, series: list[Series], now: float, step_s: float) -> Vector:
    (argument,) = node.args
    if node.func.name == "absent":
        return {} if _vector(argument, series, now, step_s) else {(): 1.0}
    if node.func.name not in ("increase", "rate"):
        raise NotImplementedError(node.func.name)
    found, span = {}, argument.range.total_seconds()
    for one in _selected(argument.vector_selector, series):
        samples = _samples(one, now, span, step_s)
        if len(samples) > 1:  # as in Prometheus, a single sample has no increase
            grown = sum(max(0.0, b - a) for a, b in pairwise(samples))
            found[_key(one.labels)] = grown / (span if node.func.name == "rate" else 1.0)
    return found


def _selected(selector: Any, series: list[Series]) -> list[Series]:
    return [one for one in series if one.name == selector.name and all(map(_matcher(one), selector.matchers.matchers))]


def _matcher(one: Series) -> Callable[[Any], bool]:
    def matches(matcher: Any) -> bool:
        given = one.labels.get(matcher.name, "")
        if matcher.op == promql.MatchOp.Equal:
            return given == matcher.value
        if matcher.op == promql.MatchOp.Re:
            return re.fullmatch(matcher.value, given) is not None
        raise NotImplementedError(str(matcher.op))

    return matches


def _samples(one: Series, now: float, span: float, step_s: float) -> list[float]:
    times = [now - step_s * k for k in range(int(span / step_s), -1, -1)]
    return [value for time in times if (value := one.value(time)) is not None]


def _seconds(offset: timedelta | None) -> float:
    return offset.total_seconds() if offset else 0.0


def _key(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
