"""YAML files written by people, read into pydantic models: errors name file, line and field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raycache.text_files import (
    UNSEEN,
    FileError,
    blanks_made_plain,
    odd_letter,
    read_text,
    seen,
    trimmed,
    trimmed_within,
)

__all__ = ["load_as", "load_yaml"]

Model = TypeVar("Model", bound=BaseModel)

#: A key or the dash of a list, followed by space-like characters, which YAML requires to be U+0020.
_BEFORE_VALUE = re.compile(rf"^( *(?:- +)*(?:[\w.-]+:|-))(?:(?!\n)[{UNSEEN}])+", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Reports the position of strings that only look like dates and numbers."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


#: Maximum number of errors shown.
_SHOWN = 3


def load_as(path: Path, model: type[Model], kind: str) -> Model:
    """The file's contents, validated by ``model``.

    Args:
        path: path of the file.
        model: model of its content.
        kind: what the file should be, for messages: "presets file".

    Raises:
        FileError: it is not a ``kind``; the message has the line, the field and the error.
        OSError: the file cannot be read.
    """
    value, root = _read(path, kind)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = [_fault(root, item) for item in error.errors(include_url=False)[:_SHOWN]]
        (line, first), *others = faults
        told = [first, *(f"line {number}: {reason}" for number, reason in others)]
        raise FileError(path, line, f"no {kind}: {' | '.join(told)}") from None


def load_yaml(path: Path, kind: str = "YAML file") -> object:
    """The file's contents, only checked for YAML's own rules and duplicate keys.

    Raises:
        FileError, OSError: as :func:`load_as`.
    """
    return _read(path, kind)[0]


def _read(path: Path, kind: str) -> tuple[object, yaml.Node]:
    text = _BEFORE_VALUE.sub(r"\1 ", blanks_made_plain(read_text(path)))
    try:
        root = yaml.compose(text, Loader=_Loader)
        value = trimmed_within(yaml.load(text, Loader=_Loader))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FileError(path, line, f"no {kind}: U+{error.character:04X} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise FileError(path, mark.line + 1 if mark else None, f"no {kind}: {reason}") from None
    except RecursionError:
        raise FileError(path, None, f"no {kind}: it contains itself, or is nested too deeply") from None
    if root is None:
        raise FileError(path, None, f"no {kind}: it is empty")
    for key in _twice(root, set()):
        # YAML uses the last one, but a reader may see only the first.
        raise FileError(path, key.start_mark.line + 1, f"no {kind}: `{seen(key.value)}` stands here a second time")
    return value, root


def _twice(node: yaml.Node, known: set[int]) -> Iterator[yaml.Node]:
    """Duplicate keys of a mapping."""
    if id(node) in known:  # an alias
        return
    known.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _twice(item, known)
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if trimmed(key.value) in keys:
                    yield key
                keys.add(trimmed(key.value))
            yield from _twice(value, known)


def _fault(root: yaml.Node, item: ErrorDetails) -> tuple[int, str]:
    """Line and reason of one of pydantic's errors."""
    # pydantic appends `[key]` after a key that is itself wrong.
    loc = tuple(part for part in item["loc"] if part != "[key]")
    line, path = _place(root, loc)
    unknown = item["type"] == "extra_forbidden"
    reason = "unknown field" if unknown else item["msg"].removeprefix("Value error, ")
    if (unknown or loc != item["loc"]) and (odd := odd_letter(path[-1])):
        reason += f"; {odd}"
    given = item.get("input")
    if isinstance(given, str | int | float) and not unknown and len(repr(given)) <= 80:
        reason += f", got {given!r}"
    return line, seen(": ".join([".".join(path), reason] if path else [reason]))


def _place(node: yaml.Node, loc: Sequence[str | int]) -> tuple[int, list[str]]:
    """The position of ``loc``: line of its last part in the file, and its parts that a user wrote or left out.

    pydantic also adds the member of a union, which is not in the file.
    """
    line, path = node.start_mark.line + 1, []
    for number, part in enumerate(loc):
        found = _child(node, part)
        if found is not None:
            key, node = found
            line = key.start_mark.line + 1
        elif number < len(loc) - 1 or isinstance(node, yaml.ScalarNode):
            continue
        path.append(str(part))
    return line, path


def _child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if trimmed(key.value) == str(part)), None)
    return None
