"""Errors as gRPC tells them: a status code, one line, and when to try again."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from ..protocol.errors import ProtocolError

RETRY = "retry-after-ms"  # trailing metadata of a refusal, and a parameter of a stream's error

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.INVALID_ARGUMENT,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.RESOURCE_EXHAUSTED,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_log = logging.getLogger(__name__)


def code_of(error: ProtocolError) -> Any:
    """The ``grpc.StatusCode`` of an error; UNAVAILABLE while the server drains or loads."""
    if error.status == 503 and getattr(error, "unavailable", False):
        return grpc.StatusCode.UNAVAILABLE
    return _CODES.get(error.status, grpc.StatusCode.INTERNAL)


def retry_after_ms(error: ProtocolError) -> int | None:
    """After how many milliseconds a refused client may try again; None for other errors."""
    seconds: float | None = getattr(error, "retry_after", None)
    return None if seconds is None else max(1, math.ceil(seconds * 1000))


@asynccontextmanager
async def guarded() -> AsyncIterator[None]:
    """A block whose unexpected errors are logged, and become ProtocolErrors of status 500."""
    try:
        yield
    except ProtocolError:
        raise
    except Exception:
        _log.exception("a gRPC request failed")
        raise ProtocolError(500, "the request failed; the server's log says why") from None


async def abort(context: Any, error: ProtocolError) -> None:
    """End a call with an error; does not return."""
    retry = retry_after_ms(error)
    trailing = () if retry is None else ((RETRY, str(retry)),)
    await context.abort(code_of(error), error.message, trailing)
