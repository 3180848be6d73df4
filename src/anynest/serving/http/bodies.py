"""Bodies: bounded, received within a time, decompressed as they come; compressed responses.

``gzip`` is RFC 1952, ``deflate`` the zlib format of RFC 1950, as in RFC 9110. The event loop serves
everybody, so a body is decompressed in pieces, and others run between two of them.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.datastructures import Headers
from starlette.types import Receive

from ..models import ServedModel
from ..protocol.errors import ClientGone, ProtocolError

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
PIECE = 1 << 18  # bytes decompressed at once: about a millisecond
COMPRESS_FROM = 1024  # bytes; what fits in a packet is sent as it is
THREAD_FROM = 1 << 18  # bytes; longer bodies are compressed in a thread
MAX_DIGITS = 18


class Body:
    """The body of one request.

    Args:
        receive: of the ASGI application.
        headers: of the request.
        max_bytes: bound before and after decompression.

    Attributes:
        length: ``Content-Length``; None for a body in chunks, and before ``check``.
    """

    def __init__(self, receive: Receive, headers: Headers, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._encoding = headers.get("content-encoding", "identity").strip().lower()
        self._headers = headers
        self.length: int | None = None

    def check(self) -> None:
        """Check what is known before it is read.

        Raises:
            ProtocolError: 400 for a wrong length, 413 if it is too large, 415 for an unknown
                encoding.
        """
        self.length = read_length(self._headers, "content-length")
        if self.length is not None and self.length > self._max_bytes:
            raise too_large("this body", self._max_bytes, str(self.length))
        if self._encoding not in ("identity", *WINDOW_BITS):
            raise ProtocolError(
                415, f"Content-Encoding must be gzip or deflate, found {self._encoding[:40]!r}"
            )

    def least_rows(self, model: ServedModel, header_length: int | None) -> int:
        """The rows that a body of this length has at least; 1 where it tells nothing."""
        if self.length is None or self._encoding in WINDOW_BITS:
            return 1
        return model.least_rows(self.length, header_length)

    async def read(self, count: Callable[[int], None] = lambda held: None) -> bytes:
        """All of it, after decompression.

        Args:
            count: called with the number of bytes held each time that it grows.

        Raises:
            ProtocolError: 400 if the compressed data are damaged, 413 if it is too large, 499 if
                the client has gone.
        """
        chunks: list[bytes] = []
        received = held = 0
        inflater = Inflater(self._encoding) if self._encoding in WINDOW_BITS else None
        async for data in self._messages():
            received += len(data)
            if received > self._max_bytes:
                raise too_large("this body", self._max_bytes, "more")
            for piece in (data,) if inflater is None else inflater(data):
                held += len(piece)
                if held > self._max_bytes:
                    raise too_large("this body", self._max_bytes, "more")
                if piece:
                    count(held)
                    chunks.append(piece)
                if len(piece) == PIECE:
                    await asyncio.sleep(0)
        if inflater is not None:
            inflater.close()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _messages(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            yield message.get("body", b"")


def read_length(headers: Headers, name: str) -> int | None:
    """A header that is a number of bytes, None where it is missing; ProtocolError for others."""
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise ProtocolError(
            400, f"{name} must be an integer of at most {MAX_DIGITS} digits, found {text[:40]!r}"
        )
    return int(text)


class Inflater:
    """Decompresses a stream piece by piece."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(WINDOW_BITS[encoding])

    def __call__(self, data: bytes) -> Iterator[bytes]:
        """The pieces that some more data give, each of at most ``PIECE`` bytes."""
        while not self._stream.eof:
            try:
                piece = self._stream.decompress(data, PIECE)
            except zlib.error as error:
                raise self._damaged(str(error)) from None
            data = self._stream.unconsumed_tail
            yield piece
            if not data and not self._stream.eof:
                return
        if data or self._stream.unused_data:
            raise self._damaged("data follow its end")

    def close(self) -> None:
        """Raise a ProtocolError unless the stream has ended."""
        if not self._stream.eof:
            raise self._damaged("it is truncated")

    def _damaged(self, found: str) -> ProtocolError:
        return ProtocolError(400, f"the body must be one {self._encoding} stream, found: {found}")


def slow_body(seconds: float) -> ProtocolError:
    """A body that was not received within this time of its headers."""
    return ProtocolError(408, f"a body must be received within {seconds:g} s of its headers")


def too_large(what: str, max_bytes: int, found: str) -> ProtocolError:
    """Something of more bytes than the server takes."""
    return ProtocolError(
        413,
        f"{what} must have at most {max_bytes} bytes, found {found}; send fewer rows, or tensors in "
        "binary",
    )


def accepted_encoding(accept: str) -> str | None:
    """What ``Accept-Encoding`` prefers among gzip and deflate.

    >>> accepted_encoding("deflate, gzip;q=0.5, br"), accepted_encoding("gzip;q=0")
    ('deflate', None)
    """
    best, highest = None, 0.0
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if name in WINDOW_BITS and quality > highest:
            best, highest = name, quality
    return best


async def compress(body: bytes, accept: str) -> tuple[bytes, str | None]:
    """A response's body and its ``Content-Encoding``, by the request's ``Accept-Encoding``."""
    encoding = accepted_encoding(accept) if accept and len(body) >= COMPRESS_FROM else None
    if encoding is None:
        return body, None
    if len(body) >= THREAD_FROM:
        return await asyncio.to_thread(_deflate, body, encoding), encoding
    return _deflate(body, encoding), encoding


def _deflate(body: bytes, encoding: str) -> bytes:
    stream = zlib.compressobj(1, zlib.DEFLATED, WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()
