"""The log of `serve run`, read while it grows: how far the start is, and why it will not end well."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["ServeLog"]

#: Of a reason that is told in more: a traceback's last ones.
_REASON_LINES = 12
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: What the log says once a stage is reached, in their order.
_STAGES = (
    ("Started a local Ray instance", "starting Serve"),
    ("Submitted deploy config", "checking the configuration"),
    ("Imported and built app", "starting ingress and engines"),
    ("RankActor", "ranks load the model"),
    ("from one rank", "first image, to warm up"),
)
#: After one of these nothing will ever serve, and `serve run` waits on.
_FAILURES = (
    re.compile(r"this configuration cannot work and is not deployed: (?P<reason>.*)"),
    re.compile(r"Not served: (?P<reason>.*)"),
)
#: Behind one of these the reason is told, in several lines.
_FAILING = re.compile(r"Deploying app .* failed with exception:|Received unexpected error|DEPLOY_FAILED")
_WHO = re.compile(r"^\(\w+ pid=\d+\) ")


class ServeLog:
    """A log file that another process writes.

    Attributes:
        stage: what is being done, in words for people.
        failure: why this start has failed; None while it has not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stage = "starting Ray"
        self.failure: str | None = None
        self._read, self._rest, self._reached = 0, "", -1
        self._failing: list[str] | None = None

    def read(self) -> None:
        """Look at what was written since the last time."""
        with self.path.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._read)
            text = self._rest + file.read()
            self._read = file.tell()
        *lines, self._rest = _COLOURS.sub("", text).split("\n")
        if self._failing is not None and self.failure is None:
            # One look later all of the reason is there.
            self.failure = "\n".join([*self._failing, *map(_plain, lines)][-_REASON_LINES:])
        for line in lines:
            self._take(line)

    def tail(self, count: int = 15) -> str:
        """The last lines that say something."""
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
    """Without the process that Ray says it is of."""
    return _WHO.sub("", line)
