"""Multipart forms (``multipart/form-data``): their fields as the equivalent JSON, and their files.

What OpenAI's client and others write into a form is text: numbers, ``true``, ``cache[type]`` for a part of an object,
nothing for what is null. Which of it is meant as text, the model of the body says.
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

#: Fields of one form besides its files, and bytes of each: `prompt` is the longest.
_MOST_FIELDS, _MOST_FIELD_BYTES = 128, 1 << 20
#: Letters of all its fields that are read as JSON: a megabyte of brackets becomes thirty in memory.
_MOST_JSON = 1 << 20
#: Bytes parsed before what they hold is put away: till then the parser keeps an object for each line of a file.
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


def form_of(body: bytes, content_type: str, texts: Container[str], most_files: int) -> Form:
    """The parts of ``body``. Blocks for as long as they take.

    Args:
        content_type: of the request; it has the boundary.
        texts: the fields that are text whatever they look like; others are numbers or objects written as text.
        most_files: in all.

    Raises:
        RequestError: 400.
    """
    return asyncio.run(_form_of(body, content_type, texts, most_files))


def text_fields(model: type[BaseModel]) -> frozenset[str]:
    """The fields of a body that may be text."""
    return frozenset(name for name, declared in model.model_fields.items() if _is_text(declared.annotation))


async def _form_of(body: bytes, content_type: str, texts: Container[str], most_files: int) -> Form:
    """A coroutine because Starlette's parser is one; it waits for nothing."""
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
            raise invalid(full_name[:80], "is no name of a field", code="unknown_parameter")
        name, keys = match[1], re.findall(r"\[([^\[\]]*)\]", match[2])
        if isinstance(value, UploadFile):
            form.files.setdefault(name, []).append(await value.read())
        elif name in texts:
            if value:
                _put(form.fields, [name, *keys], value)
        elif value:
            if value.lstrip()[:1] in ("[", "{") and (json_left := json_left - len(value)) < 0:
                raise invalid(name, f"lists and objects of a form may have {_MOST_JSON} letters in all; send JSON")
            _put(form.fields, [name, *keys], _meant(value))
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
