"""The log of `serve run`, read while it grows: the progress of the start, and why it fails."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["ServeLog"]

#: Lines kept of a longer reason, such as a traceback: the last ones.
_REASON_LINES = 12
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: A text in the log for each stage reached, in order.
_STAGES = (
    ("Started a local Ray instance", "starting Serve"),
    ("Submitted deploy config", "checking the configuration"),
    ("Imported and built app", "starting ingress and engines"),
    ("RankActor", "ranks load the model"),
    ("from one rank", "first image, to warm up"),
)
#: After one of these the start has failed, although `serve run` keeps waiting.
_FAILURES = (
    re.compile(r"this configuration cannot work and is not deployed: (?P<reason>.*)"),
    re.compile(r"Not served: (?P<reason>.*)"),
)
#: The reason follows one of these, in several lines.
_FAILING = re.compile(r"Deploying app .* failed with exception:|Received unexpected error|DEPLOY_FAILED")
_WHO = re.compile(r"^\(\w+ pid=\d+\) ")


class ServeLog:
    """The log file that another process writes.

    Attributes:
        stage: the current stage, for users.
        failure: why this start has failed; None if it has not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stage = "starting Ray"
        self.failure: str | None = None
        self._read, self._rest, self._reached = 0, "", -1
        self._failing: list[str] | None = None

    def read(self) -> None:
        """Read what was written since the last call."""
        with self.path.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._read)
            text = self._rest + file.read()
            self._read = file.tell()
        *lines, self._rest = _COLOURS.sub("", text).split("\n")
        if self._failing is not None and self.failure is None:
            # By the next read the whole reason is written.
            self.failure = "\n".join([*self._failing, *map(_plain, lines)][-_REASON_LINES:])
        for line in lines:
            self._take(line)

    def tail(self, count: int = 15) -> str:
        """The last non-empty lines."""
        text = _COLOURS.sub("", self.path.read_text(encoding="utf-8", errors="replace"))
        return "\n".join([line for line in text.splitlines() if line.strip()][-count:])

    def _take(self, line: str) -> None:
        for number, (mark, stage) in enumerate(_STAGES):
            if number > self._reached and mark in line:
                self._reached, self.stage = number, stage
        if self._failing is not None:
            self._failing.append(_plain(line))
        elif _FAILING.search(line):
            self._failing = [_plain(line)]
        if self.failure is None:
            found = next((match for pattern in _FAILURES if (match := pattern.search(line))), None)
            self.failure = found["reason"].strip() if found else None


def _plain(line: str) -> str:
    """The line without Ray's process prefix."""
    return _WHO.sub("", line)
