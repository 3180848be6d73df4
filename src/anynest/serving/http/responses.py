"""Responses: JSON, and one line for every error."""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from ..protocol.errors import ProtocolError
from ..protocol.inference import write_object
from .bodies import compress

# of every response; a route that says otherwise is left as it is
SECURITY = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}


async def json_response(request: Request, value: Any) -> Response:
    """A value as JSON, compressed where the client takes it."""
    return await bytes_response(request, write_object(value), "application/json")


async def bytes_response(
    request: Request, body: bytes, media_type: str, headers: dict[str, str] | None = None
) -> Response:
    """A body of a media type, compressed where the client takes it."""
    body, encoding = await compress(body, request.headers.get("accept-encoding", ""))
    found = {"vary": "accept-encoding", **(headers or {})}
    if encoding is not None:
        found["content-encoding"] = encoding
    return Response(body, media_type=media_type, headers=found)


def error_response(error: ProtocolError) -> Response:
    """``{"error": "one line"}`` with the error's status."""
    headers = {}
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = write_object({"error": error.message})
    return Response(body, error.status, headers, media_type="application/json")


async def on_error(request: Request, error: Exception) -> Response:
    """The response to any exception: starlette's handler for 404 and 405, for ours, for others."""
    if isinstance(error, ProtocolError):
        return error_response(error)
    if isinstance(error, HTTPException):
        method, path = request.method, request.url.path[:200]
        line = {
            404: f"no such path: {path!r}; /openapi.json lists them",
            405: f"{path!r} does not take {method}; /openapi.json lists the methods",
        }.get(error.status_code, error.detail)
        response = error_response(ProtocolError(error.status_code, line))
        response.headers.update(error.headers or {})
        return response
    response = error_response(ProtocolError(500, "the server failed; its log says why"))
    response.raw_headers.extend(SECURITY.items())  # from outside of the guard
    return response


async def send_start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """The beginning of a response."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def send_part(send: Send, data: bytes) -> None:
    """One part of a response that goes on."""
    await send({"type": "http.response.body", "body": data, "more_body": True})
