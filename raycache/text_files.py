"""Files that people write. What an editor leaves in them is undone, or whoever reads the error knows the line.

Byte order marks, UTF-16, any line ending, trailing and non-breaking blanks, zero-width characters at the ends of a
line and remarks mean nothing. What is left must be what its reader expects, else :class:`FileError` says where not.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["FileError", "entries", "read_text", "split_lines", "trimmed"]

#: UTF-32 first: its little-endian mark begins with the one of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")
#: White space, and what takes no room on a screen: zero-width blanks and joiners, soft hyphens, marks of direction.
_UNSEEN = r"\s\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_ENDS = re.compile(rf"\A[{_UNSEEN}]+|[{_UNSEEN}]+\Z")


class FileError(ValueError):
    """A file cannot be used as it is; the message names the file, the line (from 1) and what is wrong.

    Attributes:
        line: None where no single line is to blame.
    """

    def __init__(self, path: Path | str, line: int | None, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}" if line else f"{path}: {reason}")
        self.line = line


def read_text(path: Path) -> str:
    """The text of a file whatever wrote it, with ``\\n`` between its lines.

    The encoding is UTF-8 unless a byte order mark says otherwise; never the locale's, which differs from node to node.

    Raises:
        FileError: the bytes are no text; names the line.
        OSError: the file cannot be read.
    """
    raw = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        # `error.object` lacks the mark where the codec has taken it off.
        before = error.object[: error.start].decode(error.encoding, "replace")
        reason = f"the bytes here are not {encoding.removesuffix('-sig').upper()}; save the file as UTF-8"
        raise FileError(path, len(_LINE_END.split(before)), reason) from None
    return _LINE_END.sub("\n", text)


def split_lines(text: str) -> list[str]:
    """Lines as an editor counts them: ``str.splitlines`` would also part at form feeds and U+2028."""
    return _LINE_END.split(text)


def trimmed(text: str) -> str:
    """``text`` without what nobody sees at its ends."""
    return _ENDS.sub("", text)


def entries(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that say something, with their numbers: trimmed, and neither blank nor a ``#`` remark.

    Raises:
        FileError: as :func:`read_text`. OSError: the file cannot be read.
    """
    for number, line in enumerate(split_lines(read_text(path)), 1):
        if (line := trimmed(line)) and not line.startswith("#"):
            yield number, line
