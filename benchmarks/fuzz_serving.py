"""Random HTTP requests, sound, odd and hostile, against a real service of a small network.

    python benchmarks/fuzz_serving.py --minutes 5 --seed 0

Each case is a request to a server on loopback, sent in pieces, some by clients that vanish. The
outcome must be a response of a documented status: 200 with tensors of the right shapes, or one line
``{"error": ...}``. 500 is a failure; 503 and 504 are documented. Every ``BASELINE`` cases the
service must be as it was: no request, byte or task left, and the next answer right. A case is
reproduced by its number: ``--first 1234 --cases 1``. Ends with status 1 if any case fell.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
import uvicorn

from anynest import create_model
from anynest.serving.connections import limited
from anynest.serving.http.app import create_app
from anynest.serving.repository import Repository
from anynest.serving.service import Service
from anynest.serving.settings import Settings
from anynest.store import WeightsInfo

HEADER_LENGTH = "inference-header-content-length"
STATUSES = {200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 499, 503, 504}
BASELINE = 500  # cases
AT_ONCE = 8  # clients
IMAGE = (3, 8, 8)  # channels, height, width of the network's input
STREAM_TYPES = ("text/event-stream", "application/x-ndjson")
Draw = np.random.Generator

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e300, -0.0),
    *("", "x", "1", "é" * 300, "\ud800", "\0", "\n", [], {}, [[]], [1], {"a": 1}),
)
ODD_TEXTS = (
    *("", " ", "0", "-1", "1", "1.5", "1e3", "+7", "0x10", "9" * 30, "9" * 400, "abc", "²", "1 2"),
    *("nan", "inf", "null", "\xff\xfe", "a" * 9000, ",", ";;q=", "*/*", "gzip;q=1,deflate;q=1"),
)
ODD_HEADERS = (
    *("anynest-timeout-ms", "x-envoy-expected-rq-timeout-ms", HEADER_LENGTH, "content-encoding"),
    *("accept-encoding", "accept", "content-type", "authorization", "origin", "host", "expect"),
    *("content-length", "transfer-encoding", "x-anything"),
)
ODD_PATHS = (
    *("/", "//", "/v2/", "/v2//models", "/v2/models/", "/v2/models/none", "/v2/models/tiny/"),
    *(
        "/v2/models/tiny/versions/1",
        "/v2/models/tiny/versions/9",
        "/v2/models/tiny/versions//infer",
    ),
    *("/v2/models/tiny/versions/1/infer", "/v2/models/tiny/versions/x/ready", "/openapi.json"),
    *(
        "/v2/models/../tiny",
        "/v2/models/\n",
        "/v2/models/\0/infer",
        "/v2/models/ü/infer",
        "/x" * 500,
    ),
    *("/v2/repository/index", "/v2/repository/models/none/load", "/v2/health/live", "/v2/nothing"),
    *(
        "/v2/models/tiny/config",
        "/v2/models/tiny/stats",
        "/v2/models/stats",
        "/v2/models/tiny/infer2",
    ),
)
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "FOO")


@dataclass
class Case:
    """A request.

    Attributes:
        inputs: tensors as the JSON describes them.
        tail: bytes after the JSON.
        header: the rest of the JSON.
        sound: whether it must succeed: 200, or a refusal for want of time or room.
        framed: whether it is HTTP, so that the server knows where it ends; else the connection is
            closed, and the response may be lost.
    """

    method: str = "POST"
    path: str = "/v2/models/tiny/infer"
    headers: dict[str, str] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    tail: bytes = b""
    header: dict[str, Any] = field(default_factory=dict)
    rows: int = 1
    sound: bool = True
    framed: bool = True
    vanish: bool = False
    binary: bool = True
    body: bytes | None = None  # instead of the one made of the above
    streamed: bool = False
    told: list[str] = field(default_factory=list)

    def encode(self) -> bytes:
        """The body before compression; sets the length of its JSON."""
        if self.body is not None:
            return self.body
        text = json.dumps({"inputs": self.inputs, **self.header}).encode()
        if self.binary:
            self.headers.setdefault(HEADER_LENGTH, str(len(text)))
        return text + self.tail


def sound_case(draw: Draw) -> Case:
    """A request that the server takes."""
    case = Case()
    rows = int(draw.integers(1, 4))
    channels, height, width = IMAGE
    kind = draw.choice(["FP32", "UINT8", "JSON"])
    if kind == "UINT8":
        shape = [rows, channels, height, width] if draw.random() < 0.5 else [rows, height, width, 3]
        data = draw.integers(0, 256, math.prod(shape), dtype=np.uint8).tobytes()
    else:
        shape = [rows, channels, height, width]
        data = draw.standard_normal(math.prod(shape)).astype("<f4").tobytes()
    tensor = {"name": "x", "shape": shape, "datatype": "UINT8" if kind == "UINT8" else "FP32"}
    if kind == "JSON":
        tensor["data"] = np.frombuffer(data, "<f4").round(3).astype(float).tolist()
        case.binary = False
    else:
        tensor["parameters"] = {"binary_data_size": len(data)}
        case.tail = data
    case.inputs, case.rows = [tensor], rows
    if draw.random() < 0.3:
        case.header["id"] = "request é"
    if draw.random() < 0.3:
        case.header["parameters"] = {"timeout": int(draw.choice([20_000, 200_000, 2_000_000]))}
    if draw.random() < 0.3:
        case.header.setdefault("parameters", {})["binary_data_output"] = True
    if draw.random() < 0.2:
        case.headers["accept-encoding"] = str(draw.choice(["gzip", "deflate", "gzip;q=0", "br"]))
    return case


# -- mutations: each spoils a case in one way, or makes it odd -------------------------------------
MUTATIONS: dict[str, Callable[[Case, Draw], None]] = {}


def mutation(function: Callable[[Case, Draw], None]) -> Callable[[Case, Draw], None]:
    MUTATIONS[function.__name__] = function
    return function


def odd(draw: Draw) -> Any:
    return ODD_VALUES[int(draw.integers(len(ODD_VALUES)))]


def odd_text(draw: Draw) -> str:
    return ODD_TEXTS[int(draw.integers(len(ODD_TEXTS)))]


@mutation
def size_lies(case: Case, draw: Draw) -> None:
    size = len(case.tail)
    lies = [size - 1, size + 1, 0, -1, size * 2, 2**63, size / 2, str(size), odd(draw)]
    case.inputs[0]["parameters"] = {"binary_data_size": lies[int(draw.integers(len(lies)))]}


@mutation
def shape_lies(case: Case, draw: Draw) -> None:
    shape = list(case.inputs[0]["shape"])
    place = int(draw.integers(len(shape)))
    choice = int(draw.integers(8))
    if choice == 0:
        shape[place] = odd(draw)
    elif choice == 1:
        shape.insert(place, int(draw.integers(3)))
    elif choice == 2:
        del shape[place]
    elif choice == 3:
        shape = [2**40, 2**40]
    elif choice == 4:
        shape = [0, 2**70, *shape]
    elif choice == 5:
        shape = [1] * 100
    elif choice == 6:
        shape[0] = int(draw.choice([33, 1000, 10**6]))
    else:
        shape = odd(draw)
    case.inputs[0]["shape"] = shape


@mutation
def type_lies(case: Case, draw: Draw) -> None:
    names = ["FP16", "FP64", "INT8", "BOOL", "UINT64", "BYTES", "BF16", "fp32", odd(draw)]
    case.inputs[0]["datatype"] = names[int(draw.integers(len(names)))]


@mutation
def pictures(case: Case, draw: Draw) -> None:
    """BYTES elements that are no pictures, and whose lengths may lie."""
    data = draw.bytes(int(draw.integers(0, 40)))
    length = int(draw.choice([len(data), len(data) + 1, max(len(data) - 1, 0), 2**32 - 1]))
    case.tail, case.binary = struct.pack("<I", length) + data, True
    rows = int(draw.choice([1, 1, 2, 10**7]))
    case.inputs = [
        {
            **{"name": "x", "datatype": "BYTES", "shape": [rows]},
            "parameters": {"binary_data_size": len(case.tail)},
        }
    ]


@mutation
def names_lie(case: Case, draw: Draw) -> None:
    choice = int(draw.integers(4))
    if choice == 0:
        case.inputs[0]["name"] = odd(draw)
    elif choice == 1:
        case.inputs *= int(draw.choice([2, 100]))
    elif choice == 2:
        case.inputs = []
    else:
        case.inputs[0].pop(str(draw.choice(list(case.inputs[0]))))


@mutation
def header_length_lies(case: Case, draw: Draw) -> None:
    length = len(case.encode()) - len(case.tail)
    lies = [length - 1, length + 1, 0, length + len(case.tail), length + len(case.tail) + 1, 2**63]
    text = str(lies[int(draw.integers(len(lies)))]) if draw.random() < 0.7 else odd_text(draw)
    case.headers[HEADER_LENGTH] = text


@mutation
def body_is_cut(case: Case, draw: Draw) -> None:
    body = case.encode()
    case.body = body[: int(draw.integers(len(body)))]


@mutation
def bytes_follow(case: Case, draw: Draw) -> None:
    case.tail += draw.bytes(int(draw.integers(1, 9)))


@mutation
def bytes_flip(case: Case, draw: Draw) -> None:
    body = bytearray(case.encode())
    for _ in range(int(draw.integers(1, 6))):
        body[int(draw.integers(len(body)))] ^= int(draw.integers(1, 256))
    case.body = bytes(body)


@mutation
def noise(case: Case, draw: Draw) -> None:
    case.body = draw.bytes(int(draw.integers(0, 2000)))
    if draw.random() < 0.5:
        case.headers[HEADER_LENGTH] = str(int(draw.integers(0, 2000)))


@mutation
def json_is_odd(case: Case, draw: Draw) -> None:
    deep = int(draw.choice([20, 400, 5000, 200_000]))
    texts = [
        b"[" * deep + b"]" * deep,
        b'{"inputs":' * deep + b"1" + b"}" * deep,
        b'{"inputs":' + b"[" * deep + b"]" * deep + b"}",
        b'{"inputs": [{"name": "x", "datatype": ' + b"[" * deep + b"]" * deep + b"}]}",
        b'{"inputs": [], "inputs": 1}',
        b'{"inputs": NaN}',
        b'{"inputs": ' + b"9" * 5000 + b"}",
        b'{"id": "\\ud800", "inputs": [{}]}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b"null",
        b"{",
        b'"' + b"a" * deep,
    ]
    case.body = texts[int(draw.integers(len(texts)))]
    case.headers.pop(HEADER_LENGTH, None)


@mutation
def data_lie(case: Case, draw: Draw) -> None:
    case.inputs[0].pop("parameters", None)
    values: list[Any] = [odd(draw)] * math.prod(IMAGE)
    lies = [odd(draw), values, [values], [[1, 2], [3]], [1e39] * math.prod(IMAGE), values[:-1]]
    case.inputs[0]["data"] = lies[int(draw.integers(len(lies)))]
    case.tail, case.binary = b"", False
    case.inputs[0]["shape"] = [1, *IMAGE]


@mutation
def parameters_are_odd(case: Case, draw: Draw) -> None:
    names = ["timeout", "priority", "stages", "confidence", "binary_data_output", "sequence_id"]
    found = {str(draw.choice(names)): odd(draw) for _ in range(int(draw.integers(1, 3)))}
    case.header["parameters"] = found if draw.random() < 0.9 else odd(draw)


@mutation
def outputs_are_odd(case: Case, draw: Draw) -> None:
    entries: list[Any] = [
        {"name": "logits", "parameters": {"binary_data": odd(draw)}},
        {"name": "logits", "parameters": odd(draw)},
        {"name": "label", "parameters": {"classification": 3}},
        {"name": "none"},
        {"name": odd(draw)},
        odd(draw),
    ]
    chosen = [entries[int(draw.integers(len(entries)))] for _ in range(int(draw.integers(1, 3)))]
    case.header["outputs"] = chosen if draw.random() < 0.9 else odd(draw)


@mutation
def header_is_odd(case: Case, draw: Draw) -> None:
    name = str(draw.choice(ODD_HEADERS))
    case.headers[name] = odd_text(draw)
    case.framed &= name not in ("content-length", "transfer-encoding")


@mutation
def path_is_odd(case: Case, draw: Draw) -> None:
    case.path = str(draw.choice(ODD_PATHS))


@mutation
def method_is_odd(case: Case, draw: Draw) -> None:
    case.method = str(draw.choice(METHODS))
    case.framed &= case.method != "FOO"
    if draw.random() < 0.5:
        path_is_odd(case, draw)


@mutation
def spent(case: Case, draw: Draw) -> None:
    name = str(draw.choice(["anynest-timeout-ms", "x-envoy-expected-rq-timeout-ms"]))
    case.headers[name] = str(int(draw.choice([-1, 0, 1, 2, 3])))


@mutation
def packed(case: Case, draw: Draw) -> None:
    body = case.encode()
    zipped = gzip.compress(body)
    choice = int(draw.integers(9))
    encoding = "gzip"
    if choice == 0:
        zipped = zipped[: int(draw.integers(len(zipped)))]
    elif choice == 1:
        flipped = bytearray(zipped)
        flipped[int(draw.integers(len(flipped)))] ^= int(draw.integers(1, 256))
        zipped = bytes(flipped)
    elif choice == 2:
        zipped += zipped
    elif choice == 3:
        zipped = gzip.compress(bytes(3 << 20))
    elif choice == 4:
        zipped, encoding = body, str(draw.choice(["gzip", "deflate", "br", "gzip, gzip"]))
    elif choice == 5:
        zipped, encoding = zlib.compress(body)[2:-4], "deflate"
    case.body, case.headers["content-encoding"] = zipped, encoding


@mutation
def packed_well(case: Case, draw: Draw) -> None:
    body, encoding = case.encode(), str(draw.choice(["gzip", "deflate"]))
    case.body = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    case.headers["content-encoding"] = encoding


@mutation
def streamed(case: Case, draw: Draw) -> None:
    case.path += "_stream"
    case.headers["accept"] = str(draw.choice(STREAM_TYPES))
    case.header.get("parameters", {}).pop("binary_data_output", None)
    case.streamed = True
    case.sound &= case.body is None  # else the body is made, and may ask for binary outputs


@mutation
def vanishes(case: Case, draw: Draw) -> None:
    case.vanish = True


HARMLESS = {"packed_well", "streamed", "vanishes"}


def make_case(seed: int, number: int) -> tuple[Case, list[bytes], Draw]:
    """The case of a number, and its body in pieces."""
    draw = np.random.default_rng([seed, number])
    case = sound_case(draw)
    names = list(MUTATIONS)
    for _ in range(int(draw.choice([0, 1, 1, 1, 2]))):
        name = names[int(draw.integers(len(names)))]
        case.told.append(name)
        with suppress(LookupError, TypeError, AttributeError):  # of what another one has removed
            MUTATIONS[name](case, draw)
        case.sound &= name in HARMLESS and name not in case.told[:-1]
    body = case.encode()
    cuts = sorted(int(draw.integers(len(body) + 1)) for _ in range(int(draw.choice([0, 0, 1, 3]))))
    places = [0, *cuts, len(body)]
    return case, [body[a:b] for a, b in pairwise(places)], draw


# -- over a socket ---------------------------------------------------------------------------------
@dataclass
class Reply:
    """A response as it was received."""

    status: int
    headers: dict[str, str]
    body: bytes


async def exchange(port: int, case: Case, pieces: list[bytes], draw: Draw) -> Reply | None:
    """Send a case on a connection of its own; None if the client vanished or got no response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        chunked = draw.random() < 0.2 and "content-length" not in case.headers
        headers = {"host": "localhost", "connection": "close"}
        if chunked:
            headers["transfer-encoding"] = "chunked"
        else:
            headers["content-length"] = str(sum(map(len, pieces)))
        headers.update(case.headers)
        lines = [f"{case.method} {quote(case.path, safe='/')} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        sent = ["\r\n".join([*lines, "", ""]).encode("latin-1", errors="replace")]
        for piece in pieces:
            if chunked and piece:
                sent.append(b"%x\r\n%b\r\n" % (len(piece), piece))
            elif not chunked:
                sent.append(piece)
        if chunked:
            sent.append(b"0\r\n\r\n")
        if case.vanish:
            data = b"".join(sent)
            sent = [data[: int(draw.integers(len(data) + 1))]]
        for part in sent:
            writer.write(part)
            await asyncio.sleep(0)
        if case.vanish:
            if draw.random() < 0.5:
                writer.transport.abort()
            return None
        return parse_reply(await reader.read())
    except ConnectionError:
        return None
    finally:
        writer.close()


def parse_reply(data: bytes) -> Reply | None:
    """The response in all the bytes of a connection."""
    while data.startswith(b"HTTP/1.1 100"):
        data = data.partition(b"\r\n\r\n")[2]
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        rest, body = body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return Reply(int(first.split()[1]), headers, body)


def fault(case: Case, reply: Reply | None) -> str | None:
    """What is wrong with the response to a case; None if nothing is."""
    if case.vanish:
        return None
    if reply is None:
        return "no response" if case.framed else None
    if reply.status not in STATUSES:
        return f"status {reply.status}"
    if case.sound and reply.status not in (200, 503, 504):
        return f"status {reply.status} for a sound request: {reply.body[:200]!r}"
    if case.method == "HEAD":
        return None
    if reply.status != 200:
        return error_fault(reply)
    return inference_fault(case, reply) if case.sound else None


def error_fault(reply: Reply) -> str | None:
    """What is wrong with an error."""
    try:
        found = json.loads(reply.body)
    except ValueError:
        return f"an error that is no JSON: {reply.body[:200]!r}"
    line = found.get("error") if isinstance(found, dict) and len(found) == 1 else None
    if not isinstance(line, str) or not line or "\n" in line or "Traceback" in line:
        return f"an error that is no line: {reply.body[:200]!r}"
    return None


def inference_fault(case: Case, reply: Reply) -> str | None:
    """What is wrong with the answer to a sound request."""
    body = reply.body
    match reply.headers.get("content-encoding"):
        case "gzip":
            body = gzip.decompress(body)
        case "deflate":
            body = zlib.decompress(body)
    if case.streamed:
        events = reply.headers["content-type"].startswith("text/event-stream")
        lines = body.split(b"\n\n" if events else b"\n")[:-1]
        found = [json.loads(line.removeprefix(b"data: ")) for line in lines]
        headers = [one for one in found if one["outputs"]]  # the last may have parameters alone
        stages = [one["parameters"]["stage"] for one in headers]
        if not stages or stages != sorted(set(stages)):
            return f"a stream of the stages {stages}"
        if any(one["parameters"]["stop_reason"] for one in found[:-1]):
            return "a stream that goes on after its end"
    else:
        length = int(reply.headers.get(HEADER_LENGTH, len(body)))
        headers = [json.loads(body[:length])]
        sizes = [one.get("parameters", {}) for one in headers[0]["outputs"]]
        if len(body) - length != sum(one.get("binary_data_size", 0) for one in sizes):
            return "binary_data_size of the outputs does not add up"
    for header in headers:
        rows = {tensor["shape"][0] for tensor in header["outputs"]}
        if rows != {case.rows}:
            return f"{rows} rows instead of {case.rows}"
        if header.get("id") != case.header.get("id"):
            return f"the id {header.get('id')!r}"
    return None


# -- the service -----------------------------------------------------------------------------------
@dataclass
class Target:
    """A running server.

    Attributes:
        service: of the small network.
        port: on loopback.
    """

    service: Service
    port: int

    async def baseline(self) -> list[str]:
        """What is left of the requests so far, and whether the next answer is right."""
        for _ in range(200):  # what vanished clients left is noticed within two seconds
            if not self.service.in_flight and not self.service.bytes_in_flight:
                break
            await asyncio.sleep(0.01)
        found = []
        if self.service.in_flight or self.service.bytes_in_flight:
            found.append(
                f"{self.service.in_flight} requests, {self.service.bytes_in_flight} bytes left"
            )
        draw = np.random.default_rng(0)
        case = sound_case(draw)
        case.header["parameters"] = {"timeout": 30_000_000}
        reply = await exchange(self.port, case, [case.encode()], draw)
        wrong = fault(case, reply)
        if wrong or reply is None or reply.status != 200:
            found.append(f"the next answer is wrong: {wrong or reply}")
        return found


@asynccontextmanager
async def serving() -> AsyncIterator[Target]:
    """A service of a small network behind uvicorn; short times and bounds reach more cases."""
    model = create_model(
        "width_nested_resnet10", num_classes=5, growth=[[1, 1], [2, 1]], base_width=2
    )
    info = WeightsInfo(
        **{"model": "tiny", "arguments": {}, "classes": tuple("abcde"), "image_size": IMAGE[1]},
        **{"mean": (0.5,) * 3, "std": (0.25,) * 3, "data": "none", "anynest": "0"},
    )
    repository = Repository()
    repository.add(model, "tiny", info=info)
    settings = Settings(max_batch=4, max_body=1 << 20, receive_seconds=3.0, default_deadline=0.2)
    service = Service(repository, settings)
    await service.start()
    config = uvicorn.Config(
        create_app(service),
        **{"port": 0, "log_level": "critical", "lifespan": "off", "ws": "none"},
        http=limited(header_seconds=settings.receive_seconds, max_connections=100),
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield Target(service, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await task
        await service.stop(1.0)


async def fuzz(
    seed: int, first: int, cases: int, until: float, show: Callable[[str], None] = print
) -> tuple[Counter[str], int]:
    """Run cases until there are enough, or time is up.

    Returns:
        How often each mutation ended in each status, and the number of cases that fell.
    """
    counts: Counter[str] = Counter()
    fell = 0
    async with serving() as target:
        tasks_before = len(asyncio.all_tasks())

        async def run(number: int) -> None:
            nonlocal fell
            case, pieces, draw = make_case(seed, number)
            reply = await exchange(target.port, case, pieces, draw)
            wrong = fault(case, reply)
            status = "gone" if reply is None else str(reply.status)
            for name in case.told or ["sound"]:
                counts[f"{name} {status}"] += 1
            if wrong is not None:
                fell += 1
                show(f"case {number} {case.told} {case.method} {case.path}: {wrong}")

        number = first
        while number < first + cases and time.monotonic() < until:
            stop = min(number + BASELINE, first + cases)
            numbers = iter(range(number, stop))

            async def client(numbers: Iterator[int] = numbers) -> None:
                for one in numbers:
                    await run(one)

            await asyncio.gather(*(client() for _ in range(AT_ONCE)))
            number = stop
            for wrong in await target.baseline():
                fell += 1
                show(f"after case {number - 1}: {wrong}")
        for _ in range(200):
            if len(asyncio.all_tasks()) <= tasks_before:
                break
            await asyncio.sleep(0.01)
        else:
            fell += 1
            show(f"{len(asyncio.all_tasks()) - tasks_before} tasks are left")
        counts["cases"] = number - first
    return counts, fell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first case's number")
    parser.add_argument("--cases", type=int, default=10**9)
    told = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * told.minutes
    counts, fell = asyncio.run(fuzz(told.seed, told.first, told.cases, until))
    total = counts.pop("cases")
    table: dict[str, dict[str, int]] = {}
    for key, count in counts.items():
        name, _, status = key.partition(" ")
        table.setdefault(name, {})[status] = count
    for name in sorted(table):
        found = ", ".join(f"{status}: {count}" for status, count in sorted(table[name].items()))
        print(f"{name:20} {found}")
    print(f"{total} cases, {fell} fell")
    return int(fell > 0)


if __name__ == "__main__":
    sys.exit(main())
