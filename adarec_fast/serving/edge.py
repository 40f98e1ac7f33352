"""Around the application: bodies are bounded, requests counted and timed, HEAD is GET."""

from __future__ import annotations

import time
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError
from .metrics import Metrics
from .tokens import Tokens

ENDPOINTS = (
    "/recommend", "/similar", "/health", "/ready", "/metrics", "/docs", "/openapi.json",
)  # fmt: skip
# A probe has no token, and learns nothing but a yes or no.
OPEN = ("/ready",)
# A client reads its answer only after it has sent its body: so much of it is taken and thrown away.
_PATIENCE = 1 << 23


def own_path(scope: Scope) -> str:
    """The path below what a proxy has put before it, which it may have stripped or not."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


class Edge:
    """ASGI middleware.

    Args:
        app: what it protects.
        metrics: told of every answer.
        max_body: bytes; a larger body gets a 413.
        timeout: seconds for the body to come; then a 408.
        root_path: what a proxy puts before our paths; by default what the server says of it.
        tokens: of which a request needs one, but for :data:`OPEN`; None lets everybody in.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, max_body: int, timeout: float, root_path: str = "",
        tokens: Tokens | None = None,
    ) -> None:
        self._app, self._metrics, self._root_path = app, metrics, root_path
        self._tokens = tokens
        self._max_body, self._timeout = max_body, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500
        root = self._root_path or str(scope.get("root_path", ""))
        path = own_path({**scope, "root_path": root})
        # As ASGI wants it, and static files need it: the prefix is there, stripped or not.
        scope = {**scope, "root_path": root, "path": root + path}
        endpoint = path if path in ENDPOINTS else "other"
        refusal = (
            None if self._tokens is None or path in OPEN
            else self._tokens.refusal(scope["headers"])
        )
        head = scope["method"] == "HEAD"
        if head:
            scope["method"] = "GET"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            try:
                if refusal is not None and b"expect" in dict(scope["headers"]):
                    raise refusal  # its body need not be sent
                with anyio.fail_after(self._timeout):
                    body = await self._body(scope, receive)
            except TimeoutError:
                raise RequestError(
                    408, "slow_body", f"the body did not come within {self._timeout:g} s"
                ) from None
            if body is None:
                status = 499  # gone before its request was whole
            elif refusal is not None:
                raise refusal
            else:
                await self._app(scope, _replay(body, receive), noted)
        except RequestError as error:
            await answer(noted, error)
        finally:
            self._metrics.requests.labels(endpoint, str(status)).inc()
            self._metrics.request_seconds.labels(endpoint).observe(time.perf_counter() - begun)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None if the client went away."""
        headers = dict(scope["headers"])
        said = headers.get(b"content-length", b"0")
        if b"expect" in headers and said.isdigit() and int(said) > self._max_body:
            raise self._too_large(int(said))  # it waits for leave to send
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= self._max_body:
                parts.append(part)
            elif size > _PATIENCE:
                raise self._too_large(size)
            if not message.get("more_body", False):
                break
        if size > self._max_body:
            raise self._too_large(size)
        return b"".join(parts)

    def _too_large(self, size: int) -> RequestError:
        return RequestError(
            413,
            "body_too_large",
            f"the body has {size} bytes or more; at most {self._max_body} are read",
            "body",
            size,
        )


async def answer(send: Send, error: RequestError) -> None:
    """An error as a whole response."""
    body = error.body()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers.update(error.headers)
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body at once, then what comes after it."""
    sent = False

    async def replayed() -> dict[str, Any] | Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
