"""Responses that come before the request's body is received: refusals, most of all.

A connection that is closed while data arrive is reset, and the client may lose the response. So the
rest of the body is received for a moment before the response ends. The connection goes on unless
that rest is long, or of unknown length.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER = 2.0  # seconds
KEEP_ALIVE = 1 << 18  # bytes of a body after which a connection goes on, though nobody read it
SLOW = 408  # status after which the connection ends: the client has shown that it is slow


class UnreadBodies:
    """A layer round an application that ends its responses when the client has sent its body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        complete = length == "0" and "transfer-encoding" not in headers

        async def receive_noted() -> Message:
            nonlocal complete
            message = await receive()
            complete = complete or not message.get("more_body", False)
            return message

        async def send_last(message: Message) -> None:
            if not complete:
                if message["type"] == "http.response.start":
                    if message["status"] == SLOW or not short(headers, length):
                        more = [*message["headers"], (b"connection", b"close")]
                        message = {**message, "headers": more}
                elif not message.get("more_body", False):
                    await send({**message, "more_body": True})
                    await discard()
                    message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        async def discard() -> None:
            if waits_for_permission(headers):
                return
            try:
                async with asyncio.timeout(LINGER):
                    while not complete:
                        await receive_noted()
            except TimeoutError:
                pass

        await self._app(scope, receive_noted, send_last)


def short(headers: Headers, length: str) -> bool:
    """Whether a body is sent in any case, and soon over."""
    known = length.isdecimal() and len(length) < 10 and "transfer-encoding" not in headers
    return known and int(length) <= KEEP_ALIVE and not waits_for_permission(headers)


def waits_for_permission(headers: Headers) -> bool:
    """Whether the client sends its body only when the application begins to read it."""
    return headers.get("expect", "").lower() == "100-continue"
