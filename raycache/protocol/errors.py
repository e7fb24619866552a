"""Errors that a user sees, in the shape of OpenAI's API: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cache_core.options import method_names

#: pydantic names the member of a union in an error's path; the user did not write it.
_UNION_TAGS = frozenset({*method_names(), "auto"})
#: Maximum characters of user input that a message repeats.
_ECHO = 80


class RequestError(Exception):
    """Why a request gets no image. Picklable, so it passes through handles unchanged.

    Attributes:
        status: HTTP status code.
        message: for the user; never contains the prompt.
        param: the field at fault, dotted (``cache.Fn_compute_blocks``), or None.
        code: stable identifier for programs, e.g. ``invalid_value``, ``queue_full``, ``deadline_exceeded``.
        retry_after_s: seconds after which trying again makes sense; None if it never does.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(status, message, param, code, retry_after_s)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    @property
    def type(self) -> str:
        """OpenAI's type of the error."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """The JSON body of the reply."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code or None}}

    def headers(self) -> dict[str, str]:
        """``Retry-After`` in whole seconds, or a header against retries: clients otherwise retry every 5xx.

        OpenAI's clients give ``x-should-retry`` precedence over the status.
        """
        if self.retry_after_s is not None:
            return {"retry-after": str(max(1, math.ceil(self.retry_after_s))), "x-should-retry": "true"}
        return {"x-should-retry": "false"}


def invalid(
    param: str | None, reason: str, nearest: Iterable[object] = (), code: str = "invalid_value"
) -> RequestError:
    """400: the field, the reason and the nearest legal values."""
    values = [str(value) for value in nearest]
    advice = f"; nearest legal value{'s' if len(values) > 1 else ''}: {', '.join(values)}" if values else ""
    return RequestError(400, f"{param}: {reason}{advice}" if param else reason + advice, param, code)


def unavailable(reason: str, retry_after_s: float = 5.0, code: str = "not_ready") -> RequestError:
    """503: nothing is wrong with the request; try again."""
    return RequestError(503, reason, None, code, retry_after_s)


def internal_error() -> RequestError:
    """500 for a bug: only the operator should see the cause."""
    return RequestError(500, "internal error; the log has the reason", None, "internal_error")


def from_validation_error(
    error: ValidationError, fields: Iterable[str] = (), prefix: Sequence[str] = ()
) -> RequestError:
    """400 for pydantic's errors; all of them in the message, the first one as ``param``.

    Args:
        error: pydantic's error.
        fields: known names, suggested for an unknown one.
        prefix: path to the validated object inside the request.
    """
    found = [_one(item, tuple(fields), tuple(prefix)) for item in error.errors(include_url=False)]
    first = found[0]
    if len(found) == 1:
        return first
    return RequestError(400, " | ".join(item.message for item in found[:5]), first.param, first.code)


def _one(item: Mapping[str, Any], fields: tuple[str, ...], prefix: tuple[str, ...]) -> RequestError:
    context, kind = item.get("ctx", {}), item["type"]
    path = [str(part)[:_ECHO] for part in (*prefix, *item["loc"]) if part not in _UNION_TAGS]
    if kind.startswith("union_tag"):
        path.append("type")
    param = ".".join(path) or None
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], fields, n=3, cutoff=0.5)
        return invalid(param, "unknown field", close, "unknown_parameter")
    if kind == "missing":
        return invalid(param, "required field is missing", code="missing_required_parameter")
    reason = item["msg"].removeprefix("Value error, ")[: 4 * _ECHO]
    given = item.get("input")
    if isinstance(given, bool | int | float | str) and path[-1:] != ["prompt"] and len(repr(given)) <= _ECHO:
        reason += f", got {given!r}"
    return invalid(param, reason, _nearest(context, given))


def _nearest(context: Mapping[str, Any], given: object) -> list[object]:
    """The violated bound is the nearest legal value; for an exclusive bound of integers, its neighbour."""
    for bound, step in (("ge", 0), ("le", 0), ("gt", 1), ("lt", -1)):
        if bound in context:
            limit = context[bound]
            if step == 0:
                return [limit]
            return [limit + step] if isinstance(given, int) else []
    return []
