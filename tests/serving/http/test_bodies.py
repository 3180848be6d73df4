"""Bodies: every bound holds before and after decompression, and no piece is lost."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from anynest.serving.http import bodies
from anynest.serving.http.bodies import Body, accepted_encoding, compress
from anynest.serving.protocol.errors import ProtocolError


def pack(data: bytes, encoding: str) -> bytes:
    return {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding](data)


def body_of(pieces: Iterable[bytes | None], max_bytes: int = 1 << 20, **headers: str) -> Body:
    """A body that comes in pieces; None: the client goes."""
    messages = []
    pieces = list(pieces)
    for number, piece in enumerate(pieces):
        if piece is None:
            messages.append({"type": "http.disconnect"})
        else:
            more = number < len(pieces) - 1
            messages.append({"type": "http.request", "body": piece, "more_body": more})

    async def receive() -> Any:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Body(receive, Headers(given), max_bytes)


def read(body: Body, count: Callable[[int], None] = lambda held: None) -> Any:
    body.check()
    return asyncio.run(body.read(count))


def refused(body: Body) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        read(body)
    return caught.value


@given(
    data=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    encoding=st.sampled_from(["", "gzip", "deflate"]),
)
def test_it_is_what_was_sent(data: bytes, cuts: list[int], encoding: str) -> None:
    sent = pack(data, encoding)
    places = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    pieces = [sent[start:end] for start, end in pairwise(places)]
    held: list[int] = []
    body = body_of(pieces, **({"content_encoding": encoding} if encoding else {}))
    assert read(body, count=held.append) == data
    assert held == sorted(set(held)), "it only grows"
    assert (held or [0])[-1] == len(data)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_long_matches_at_the_end_of_a_piece(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """zlib may hold output back when all of its input is taken."""
    monkeypatch.setattr(bodies, "PIECE", 7)
    for length in range(60):
        data = b"a" * length
        assert read(body_of([pack(data, encoding)], content_encoding=encoding)) == data


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_the_bound_holds_after_decompression(encoding: str) -> None:
    headers = {"content_encoding": encoding} if encoding else {}
    exact = pack(b"x" * 1000, encoding)
    assert len(read(body_of([exact], 1000, **headers))) == 1000
    assert refused(body_of([pack(b"x" * 1001, encoding)], 1000, **headers)).status == 413


def test_a_bomb_is_not_inflated() -> None:
    bomb = gzip.compress(bytes(50 << 20), compresslevel=1)
    tracemalloc.start()
    try:
        error = refused(body_of([bomb], 1 << 20, content_encoding="gzip"))
        assert error.status == 413
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_others_run_while_a_body_is_inflated() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> bytes:
        other = asyncio.create_task(count_turns())
        packed = gzip.compress(bytes(8 << 20))
        try:
            body = body_of([packed], 16 << 20, content_encoding="gzip")
            return await body.read(lambda held: None)
        finally:
            other.cancel()

    assert len(asyncio.run(both())) == 8 << 20
    assert turns >= (8 << 20) // bodies.PIECE


def test_empty_blocks_are_bounded_by_what_was_sent() -> None:
    """Deflate streams may go on for ever without a byte of output."""
    stream = zlib.compressobj()
    endless = stream.compress(b"") + b"\0\0\0\xff\xff" * 300
    assert refused(body_of([endless] * 2, 1000, content_encoding="deflate")).status == 413


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"no gzip", "incorrect header"),
        (gzip.compress(b"abc", mtime=0)[:-1], "truncated"),
        (b"", "truncated"),
        (gzip.compress(b"abc", mtime=0) + b"x", "follow"),
        (gzip.compress(b"abc", mtime=0) + gzip.compress(b"abc", mtime=0), "follow"),
        (gzip.compress(b"abc", mtime=0)[:-8] + bytes(8), "incorrect data check"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_damaged_data(data: bytes, found: str, at_once: bool) -> None:
    pieces = [data] if at_once else [data[:5], data[5:]]
    error = refused(body_of(pieces, content_encoding="gzip"))
    assert error.status == 400
    assert found in error.message


def test_bytes_after_the_end_in_a_message_of_their_own() -> None:
    error = refused(body_of([gzip.compress(b"abc"), b"x"], content_encoding="gzip"))
    assert (error.status, "follow" in error.message) == (400, True)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "x"])
def test_unknown_encodings(encoding: str) -> None:
    assert refused(body_of([b""], content_encoding=encoding)).status == 415


def test_encodings_have_no_case() -> None:
    assert read(body_of([gzip.compress(b"abc")], content_encoding=" GZIP ")) == b"abc"
    assert read(body_of([b"abc"], content_encoding="identity")) == b"abc"


@pytest.mark.parametrize("length", ["-1", "1.5", "", "1" * 40, "²"])
def test_a_length_is_a_number(length: str) -> None:
    error = refused(body_of([b""], content_length=length))
    assert (error.status, "content-length must be an integer" in error.message) == (400, True)


def test_a_length_beyond_the_bound_is_refused_unread() -> None:
    body = body_of([], 1000, content_length="1001")
    with pytest.raises(ProtocolError) as caught:
        body.check()
    assert caught.value.status == 413


def test_a_client_that_goes() -> None:
    assert refused(body_of([b"abc", None])).status == 499


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("", None),
        ("br, zstd", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.1, deflate;q=0.2", "deflate"),
        ("gzip;q=0", None),
        ("GZIP; Q=1", "gzip"),
        ("gzip;q=much", None),
        (";,;q=,", None),
    ],
)
def test_the_encoding_of_a_response(accept: str, encoding: str | None) -> None:
    assert accepted_encoding(accept) == encoding


@pytest.mark.parametrize("length", [bodies.COMPRESS_FROM, bodies.THREAD_FROM])
def test_compressed_responses(length: int) -> None:
    data = bytes(range(256)) * (length // 256)
    packed, encoding = asyncio.run(compress(data, "gzip"))
    assert (gzip.decompress(packed), encoding) == (data, "gzip")
    packed, encoding = asyncio.run(compress(data, "deflate"))
    assert (zlib.decompress(packed), encoding) == (data, "deflate")
    assert asyncio.run(compress(data, "")) == (data, None)
    short = data[: bodies.COMPRESS_FROM - 1]
    assert asyncio.run(compress(short, "gzip")) == (short, None)
