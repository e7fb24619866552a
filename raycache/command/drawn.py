"""Images for commands: from a service if one runs here, else from the bundled model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.progress import Progress, TaskID

from raycache.command.telling import fail

__all__ = ["HERE", "Drawn", "cache_named", "drawing_at"]

#: Where a service is looked for if no address is given.
HERE = "http://127.0.0.1:8000"


class Drawn(NamedTuple):
    """One image.

    Attributes:
        image: an encoded file.
        line: size, seed, seconds and place in words.
        warnings: what the user should know of the request.
        seconds: from its start to its pixels, without waiting for others.
        computed_share: of the blocks of all steps, how many ran; 1.0 without a cache.
    """

    image: bytes
    line: str
    warnings: list[str]
    seconds: float
    computed_share: float


def drawing_at(url: str | None, bar: Progress, task: TaskID) -> tuple[Callable[[dict[str, Any]], Drawn], str]:
    """What draws a request, and where it does.

    Args:
        url: of a service; without one, the service at :data:`HERE` or, if none answers there, the bundled model.
        bar, task: shows what is going on.

    Returns:
        A function that draws a request's fields and ends the command if that fails, and its place in words.
    """
    from raycache.command.asking import ServiceError, ask, is_service

    bar.update(task, description="looking for a service")
    address = (url or HERE).rstrip("/")
    if url or is_service(address):

        def asked(request: dict[str, Any]) -> Drawn:
            try:
                return ask(address, request, bar, task)
            except ServiceError as error:
                fail(str(error), error.code)

        return asked, f"the service at {address}"
    bar.update(task, description="loading the bundled model")
    from raycache.command.drawing import BundledModel, DrawingError

    model = BundledModel()

    def drawn(request: dict[str, Any]) -> Drawn:
        try:
            return model.draw(request, bar, task)
        except DrawingError as error:
            fail(str(error))

    return drawn, "the bundled model, in this process"


def cache_named(option: str, text: str) -> dict[str, Any]:
    """A request's ``cache``: a method's name, or its options as JSON."""
    if not text.lstrip().startswith("{"):
        return {"type": text}
    try:
        return dict(json.loads(text))
    except ValueError as error:
        fail(f"{option} is no JSON: {error}")
