"""Forms of parts (``multipart/form-data``): their fields as JSON would have them, and their files.

What OpenAI's client and others write into a form is text: numbers, ``true``, ``cache[type]`` for a part of an object,
nothing for what is null. Which of it is meant as text, the model of the body says.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic_core
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from raycache.limits import MOST_UPLOAD
from raycache.protocol.errors import RequestError, invalid

__all__ = ["Form", "read_form"]

#: Fields of one form besides its files, and bytes of each: `prompt` is the longest.
_MOST_FIELDS, _MOST_FIELD_BYTES = 128, 1 << 20
#: Bytes that are parsed before others have their turn.
_CHUNK = 16 << 10
#: `name`, then keys inside it: `cache[type]`, `image[]`.
_NAME = re.compile(r"([^\[\]]{1,100})((?:\[[^\[\]]{0,100}\]){0,4})")
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1")

# Its warnings are of what clients send; they are told themselves.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass
class Form:
    """What a form holds.

    Attributes:
        fields: as a JSON object would have them; those that were empty are left out.
        files: by the name of their field, in their order.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


class _Parser(MultiPartParser):
    spool_max_size = MOST_UPLOAD  # the whole body is in memory, and bounded: no file needs a disk
    ended = False

    def on_end(self) -> None:
        self.ended = True


async def read_form(body: bytes, content_type: str, model: type[BaseModel], most_files: int) -> Form:
    """The parts of ``body``.

    Args:
        content_type: of the request; it has the boundary.
        model: of the body; says which fields are text, and which are numbers or objects written as text.
        most_files: in all.

    Raises:
        RequestError: 400.
    """
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise invalid(None, "the form's charset must be utf-8", code="invalid_form")
    headers = Headers({"content-type": content_type})
    parser = _Parser(
        headers, _chunks(body), max_files=most_files, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES
    )
    try:
        parts = await parser.parse()
    except MultiPartException as error:
        raise _broken(error.message) from None
    try:
        if not parser.ended:
            raise _broken("it ends before its last boundary")
        return await _sorted(parts.multi_items(), model)
    finally:
        await parts.close()


async def _chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), _CHUNK):
        yield body[start : start + _CHUNK]
        await asyncio.sleep(0)


async def _sorted(parts: Iterable[tuple[str, UploadFile | str]], model: type[BaseModel]) -> Form:
    form = Form()
    for full_name, value in parts:
        match = _NAME.fullmatch(full_name)
        if match is None:
            raise invalid(full_name[:80], "is no name of a field", code="unknown_parameter")
        name, keys = match[1], re.findall(r"\[([^\[\]]*)\]", match[2])
        if isinstance(value, UploadFile):
            form.files.setdefault(name, []).append(await value.read())
        elif value:
            declared = model.model_fields.get(name)
            text = declared is not None and _is_text(declared.annotation)
            _put(form.fields, [name, *keys], value if text else _meant(value))
    return form


def _put(fields: dict[str, Any], path: list[str], value: Any) -> None:
    """``value`` at the end of ``path``; an empty key, or a number, is one more of a list."""
    *outer, last = path
    inside: Any = fields
    for key, following in zip(outer, path[1:], strict=True):
        kind = list if _in_list(following) else dict
        inside = inside.setdefault(key, kind()) if isinstance(inside, dict) else None
        if not isinstance(inside, kind):
            raise invalid(path[0], "is given in two ways, or as a list of objects; write it as JSON")
    if isinstance(inside, list):
        inside.append(value)
    elif last in inside:
        raise invalid(".".join(path), "is given twice")
    else:
        inside[last] = value


def _in_list(key: str) -> bool:
    return key == "" or (key.isascii() and key.isdecimal())


def _meant(text: str) -> Any:
    """A number, a truth, an object or a list where ``text`` says one; else the text itself, which may be refused."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def _is_text(annotation: Any) -> bool:
    """Some of what ``annotation`` allows is a string."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(isinstance(word, str) for word in inner)
    if origin in (Annotated, Union, UnionType):
        return any(_is_text(member) for member in inner)
    return annotation is str


def _broken(reason: str) -> RequestError:
    return invalid(None, f"the form cannot be read: {reason[:200]}", code="invalid_form")
