"""Multipart forms (``multipart/form-data``): their fields as the equivalent JSON, and their files.

Forms contain only text: numbers, ``true``, ``cache[type]`` for a part of an object, an empty field for null. The model
of the body says which fields are meant as text.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Container, Iterable
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

__all__ = ["Form", "form_of", "text_fields"]

#: Maximum fields of a form, without files, and bytes of each: `prompt` is the longest.
_MOST_FIELDS, _MOST_FIELD_BYTES = 128, 1 << 20
#: Maximum characters of all fields read as JSON: a megabyte of brackets takes thirty in memory.
_MOST_JSON = 1 << 20
#: Bytes parsed at a time: until a chunk is handled, the parser keeps an object for each line of a file.
_CHUNK = 16 << 10
#: `name`, then keys inside it: `cache[type]`, `image[]`.
_NAME = re.compile(r"([^\[\]]{1,100})((?:\[[^\[\]]{0,100}\]){0,4})")
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1")

# Its warnings are about input of clients, which get errors themselves.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass
class Form:
    """The content of a form.

    Attributes:
        fields: as in a JSON object; empty ones are left out.
        files: with the name of their field, in order.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


class _Parser(MultiPartParser):
    spool_max_size = MOST_UPLOAD  # the whole body is in memory, with a limit: no temporary files
    ended = False

    def on_end(self) -> None:
        self.ended = True


def form_of(body: bytes, content_type: str, texts: Container[str], most_files: int) -> Form:
    """Parse ``body``. Blocks while parsing.

    Args:
        content_type: of the request; contains the boundary.
        texts: fields that are always text; others are numbers or objects written as text.
        most_files: maximum number of files in total.

    Raises:
        RequestError: 400.
    """
    return asyncio.run(_form_of(body, content_type, texts, most_files))


def text_fields(model: type[BaseModel]) -> frozenset[str]:
    """The fields of a body that may be text."""
    return frozenset(name for name, declared in model.model_fields.items() if _is_text(declared.annotation))


async def _form_of(body: bytes, content_type: str, texts: Container[str], most_files: int) -> Form:
    """A coroutine because Starlette's parser is one; it never waits."""
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
        return await _sorted(parts.multi_items(), texts)
    finally:
        await parts.close()


async def _chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), _CHUNK):
        yield body[start : start + _CHUNK]


async def _sorted(parts: Iterable[tuple[str, UploadFile | str]], texts: Container[str]) -> Form:
    form, json_left = Form(), _MOST_JSON
    for full_name, value in parts:
        match = _NAME.fullmatch(full_name)
        if match is None:
            raise invalid(full_name[:80], "is not a field name", code="unknown_parameter")
        name, keys = match[1], re.findall(r"\[([^\[\]]*)\]", match[2])
        if isinstance(value, UploadFile):
            form.files.setdefault(name, []).append(await value.read())
        elif name in texts:
            if value:
                _put(form.fields, [name, *keys], value)
        elif value:
            if value.lstrip()[:1] in ("[", "{") and (json_left := json_left - len(value)) < 0:
                raise invalid(name, f"lists and objects of a form may have {_MOST_JSON} characters in total; send JSON")
            _put(form.fields, [name, *keys], _meant(value))
    return form


def _put(fields: dict[str, Any], path: list[str], value: Any) -> None:
    """Set ``value`` at ``path``; an empty key, or a number, appends to a list."""
    *outer, last = path
    inside: Any = fields
    for key, following in zip(outer, path[1:], strict=True):
        kind = list if _in_list(following) else dict
        inside = inside.setdefault(key, kind()) if isinstance(inside, dict) else None
        if not isinstance(inside, kind):
            raise invalid(path[0], "is given in two ways, or as a list of objects; send it as JSON")
    if isinstance(inside, list):
        inside.append(value)
    elif last in inside:
        raise invalid(".".join(path), "is given twice")
    else:
        inside[last] = value


def _in_list(key: str) -> bool:
    return key == "" or (key.isascii() and key.isdecimal())


def _meant(text: str) -> Any:
    """The number, boolean, object or list that ``text`` contains; else the text itself, which may be refused."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def _is_text(annotation: Any) -> bool:
    """Whether ``annotation`` allows a string."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(isinstance(word, str) for word in inner)
    if origin in (Annotated, Union, UnionType):
        return any(_is_text(member) for member in inner)
    return annotation is str


def _broken(reason: str) -> RequestError:
    return invalid(None, f"the form cannot be read: {reason[:200]}", code="invalid_form")
