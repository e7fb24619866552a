"""Text files written by people.

Byte order marks, UTF-16, any line ending, trailing and non-breaking spaces, zero-width characters at the ends of a
line and comments are ignored. The rest must be what the reader expects, else :class:`FileError` says where it is not.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

__all__ = [
    "UNSEEN",
    "FileError",
    "blanks_made_plain",
    "entries",
    "odd_letter",
    "read_text",
    "seen",
    "split_lines",
    "trimmed",
    "trimmed_within",
]

#: UTF-32 first: its little-endian mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")
#: For a character class of a regular expression: white space and invisible characters: zero-width spaces and joiners,
#: soft hyphens, direction marks.
UNSEEN = r"\s\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_ENDS = re.compile(rf"\A[{UNSEEN}]+|[{UNSEEN}]+\Z")
_INDENT = re.compile(rf"^(?:(?!\n)[{UNSEEN}])+", re.MULTILINE)
_TAIL = re.compile(rf"(?:(?!\n)[{UNSEEN}])+$", re.MULTILINE)


class FileError(ValueError):
    """A file cannot be used as it is; the message names the file, the line (from 1) and what is wrong.

    Attributes:
        line: None if no single line is the cause.
    """

    def __init__(self, path: Path | str, line: int | None, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}" if line else f"{path}: {reason}")
        self.line = line


def read_text(path: Path) -> str:
    """The text of a file in any encoding, with ``\\n`` between its lines.

    The encoding is UTF-8 unless a byte order mark says otherwise; never the locale's, which differs from node to node.

    Raises:
        FileError: the bytes are not text; the message has the line.
        OSError: the file cannot be read.
    """
    raw = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        # `error.object` has no byte order mark if the codec has removed it.
        before = error.object[: error.start].decode(error.encoding, "replace")
        reason = f"the bytes here are not {encoding.removesuffix('-sig').upper()}; save the file as UTF-8"
        raise FileError(path, len(_LINE_END.split(before)), reason) from None
    return _LINE_END.sub("\n", text)


def split_lines(text: str) -> list[str]:
    """Lines as an editor counts them: ``str.splitlines`` would also split at form feeds and U+2028."""
    return _LINE_END.split(text)


def trimmed(text: str) -> str:
    """``text`` without invisible characters at its ends."""
    return _ENDS.sub("", text)


@overload
def trimmed_within(value: dict[str, Any]) -> dict[str, Any]: ...
@overload
def trimmed_within(value: object) -> object: ...
def trimmed_within(value: object) -> object:
    """``value`` with every string in its lists and mappings :func:`trimmed`; everything else unchanged."""
    if isinstance(value, str):
        return trimmed(value)
    if isinstance(value, dict):
        return {trimmed_within(key): trimmed_within(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trimmed_within(item) for item in value]
    return value


def blanks_made_plain(text: str) -> str:
    """``text`` with only plain spaces at the start of lines, and no invisible characters at their ends.

    Tabs stay, so that readers can refuse them.
    """
    text = _TAIL.sub("", text)
    return _INDENT.sub(lambda match: "".join(_plain(letter) for letter in match[0]), text)


def _plain(letter: str) -> str:
    return letter if letter == "\t" else " " if unicodedata.category(letter) == "Zs" else ""


def seen(text: str) -> str:
    """``text`` for a message, with invisible characters spelled out."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)


def odd_letter(text: str) -> str:
    """A description of the first character that is not visible ASCII; empty if all are. Many look alike."""
    for column, letter in enumerate(text, 1):
        if not "!" <= letter <= "~":
            return f"letter {column} is U+{ord(letter):04X} ({unicodedata.name(letter, 'a control character')})"
    return ""


def entries(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with content, and their numbers: trimmed, without empty lines and ``#`` comments.

    Raises:
        FileError: as :func:`read_text`. OSError: the file cannot be read.
    """
    for number, line in enumerate(split_lines(read_text(path)), 1):
        if (line := trimmed(line)) and not line.startswith("#"):
            yield number, line
