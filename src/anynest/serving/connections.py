"""HTTP/1.1 connections: uvicorn's, with what it lacks against slow and malformed clients.

uvicorn waits for a request's headers as long as a client likes and takes any number of bytes, and
it reports malformed HTTP as plain text. ASGI applications see none of this.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .http.scope import ARRIVED, CLIENT, Client

MAX_HEAD = 64 << 10  # bytes of a request's headers; one read more may be held in memory
REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def limited(*, header_seconds: float, max_connections: int) -> Callable[..., Connection]:
    """The factory of connections under these limits.

    Args:
        header_seconds: from a connection, or a request's first byte, to the end of its headers.
        max_connections: open at a time; further ones get 503 and are closed.
    """
    return partial(Connection, header_seconds=header_seconds, max_connections=max_connections)


class Connection(HttpToolsProtocol):
    """One connection; see the module."""

    def __init__(self, *, header_seconds: float, max_connections: int, **options: Any) -> None:
        super().__init__(**options)
        self.header_seconds, self.max_connections = header_seconds, max_connections
        self._timer: asyncio.TimerHandle | None = None  # runs while headers are awaited
        self._head = 0  # bytes received while headers are awaited
        self._client = Client()

    # -- asyncio ----------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first headers."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(503, f"at most {self.max_connections} connections are open; try again")
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell whoever computes for this client."""
        self._headers_are_there()
        super().connection_lost(exc)
        self._client.leave()

    def data_received(self, data: bytes) -> None:
        """Parse, unless the headers do not end."""
        if self._timer is not None:
            if self._head > MAX_HEAD:
                self._headers_are_there()
                self._refuse(431, f"a request's headers must be at most {MAX_HEAD} bytes")
            self._head += len(data)
        if not self.transport.is_closing():
            super().data_received(data)

    # -- httptools --------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        """Start the clock of a request's headers."""
        super().on_message_begin()
        self._await_headers()

    def on_headers_complete(self) -> None:
        """Note the request's arrival, from which its deadline counts."""
        self._headers_are_there()
        scope = cast(dict[str, Any], self.scope)
        scope[ARRIVED], scope[CLIENT] = time.monotonic(), self._client
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP."""
        self._headers_are_there()
        self._refuse(400, msg)

    # -- parts ------------------------------------------------------------------------------------
    def _await_headers(self) -> None:
        self._headers_are_there()
        self._head = 0
        self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _headers_are_there(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_headers()  # of a pipelined request: the one before is answered first
            return
        self._refuse(408, f"a request's headers must arrive within {self.header_seconds:g} s")

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()
