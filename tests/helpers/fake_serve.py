"""The part of Serve's proxy that the front inside it needs."""

from __future__ import annotations

__all__ = ["Serve"]


class Serve:
    """Serve's proxy behind the front: decodes headers as Serve does, and gives a scripted answer."""

    def __init__(self) -> None:
        self.scopes, self.bodies, self.alive = [], [], True
        self.answer: tuple[int, bytes, list] | None = (200, b"{}", [(b"content-type", b"application/json")])
        self.failure: Exception | None = None

    async def __call__(self, scope, receive, send) -> None:
        self.scopes.append(scope)
        if self.failure:
            raise self.failure
        for name, value in scope["headers"]:
            if name.startswith((b"x-", b"serve")):
                value.decode()
        more, body = scope["method"] == "POST", b""
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if self.answer:
            status, text, headers = self.answer
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": text[:3], "more_body": True})
            await send({"type": "http.response.body", "body": text[3:], "more_body": False})

    def header(self, name: str) -> bytes | None:
        return dict(self.scopes[-1]["headers"]).get(name.encode())
