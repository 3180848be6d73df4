"""Messages of a call: received within bounds of time and size, and sent.

gRPC's own decompression is switched off (see ``server``): it need not stop at a bound before the
memory is spent. So a compressed message arrives as it was sent, and is told by its first bytes:
no message of this protocol starts with those of gzip or zlib, which as protobuf would be a field of
an invalid type, and field 15.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from google.protobuf.message import DecodeError
from grpc import aio

from ..protocol.errors import ProtocolError

GZIP, ZLIB = b"\x1f\x8b", b"\x78"


async def receive(context: Any, seconds: float | None = None) -> bytes | None:
    """The next message of a call as it was sent; None after the last.

    Args:
        context: of the call.
        seconds: the message must be complete within; None for no bound.

    Raises:
        ProtocolError: it did not come in time.
        asyncio.CancelledError: the call has ended: the client has gone, or gRPC refused a message
            above its bound of size.
    """
    reading = asyncio.ensure_future(context.read())
    try:
        done, _ = await asyncio.wait({reading}, timeout=seconds)
    except asyncio.CancelledError:
        reading.cancel()
        raise
    if not done:
        reading.cancel()
        raise ProtocolError(408, f"the message must arrive within {seconds:g} s; send it faster")
    try:
        message = reading.result()
    except Exception as error:
        raise asyncio.CancelledError("the call has ended") from error
    return None if message is aio.EOF else bytes(message)


async def send(context: Any, message: Any) -> None:
    """Send one message of a stream; no two at once.

    Raises:
        asyncio.CancelledError: the client has gone.
    """
    data = serialize(message)
    try:
        await context.write(data)
    except Exception as error:
        raise asyncio.CancelledError("the call has ended") from error


def serialize(message: Any) -> bytes:
    """The bytes of a message."""
    return bytes(message.SerializeToString())


def parse(data: bytes, message_class: Any, limit: int) -> tuple[Any, int]:
    """A message, and its size in bytes after decompression.

    Args:
        data: as it was sent.
        message_class: of the message.
        limit: on its bytes.

    Raises:
        ProtocolError: malformed, or too large.
    """
    if data.startswith((GZIP, ZLIB)):
        data = _decompress(data, limit)
    try:
        return message_class.FromString(data), len(data)
    except DecodeError:
        name = message_class.DESCRIPTOR.name
        raise ProtocolError(400, f"the message must be a {name} in protobuf") from None


def _decompress(data: bytes, limit: int) -> bytes:
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as the header says
    try:
        found = decoder.decompress(data, limit + 1)
    except zlib.error as error:
        raise ProtocolError(400, f"the message cannot be decompressed: {error}") from None
    if len(found) > limit:
        raise ProtocolError(413, f"a message must have at most {limit} bytes after decompression")
    if not decoder.eof:
        raise ProtocolError(400, "the message cannot be decompressed: it is cut short")
    return found
