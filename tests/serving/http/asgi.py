"""Calls of an ASGI application, message by message, and requests of the binary protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anynest.serving.protocol.tensors import datatype_of, to_binary

HOST = ("host", "localhost")
INFER = "/v2/models/tiny/infer"
STREAM = "/v2/models/tiny/infer_stream"
HEADER_LENGTH = "inference-header-content-length"


@dataclass
class Reply:
    """What an application sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The line of an error, which must be all that there is."""
        assert self.status != 200, self.body
        assert self.headers["content-type"] == "application/json"
        found = json.loads(self.body)
        assert list(found) == ["error"], found
        line = found["error"]
        assert isinstance(line, str), line
        assert line, found
        assert "\n" not in line, line
        assert "Traceback" not in line, line
        return line


async def call(
    app: Any,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    *,
    method: str = "POST",
    disconnect: asyncio.Event | None = None,
    vanish: bool = False,
    last: asyncio.Event | None = None,
    into: Callable[[Reply], None] = lambda reply: None,
) -> Reply:
    """One request and its response.

    Args:
        body: in one message, or in several.
        headers: more of them, after ``Host``; a ``host`` among them replaces it.
        disconnect: the client goes when it is set.
        vanish: the client goes before it has sent the body's last part.
        last: the body's last part is sent when it is set.
        into: gets the response before it begins.
    """
    pieces = [body] if isinstance(body, bytes) else list(body)
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    if not any(name == "host" for name, _ in given):
        given.insert(0, HOST)
    if isinstance(body, bytes) and not any(name == "content-length" for name, _ in given):
        given.append(("content-length", str(len(body))))
    elif not any(name == "content-length" for name, _ in given):
        given.append(("transfer-encoding", "chunked"))
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    reply, position, done = Reply(), 0, asyncio.Event()
    into(reply)

    async def receive() -> dict[str, Any]:
        nonlocal position
        if position < len(pieces) - vanish:
            if last is not None and position == len(pieces) - 1:
                await last.wait()
            position += 1
            more = position < len(pieces)
            return {"type": "http.request", "body": pieces[position - 1], "more_body": more}
        if not vanish:
            waits = [done.wait(), *([disconnect.wait()] if disconnect else [])]
            tasks = [asyncio.ensure_future(wait) for wait in waits]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not reply.status, "a second response"
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert not done.is_set(), "more after the end"
            reply.parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                done.set()

    await app(scope, receive, send)
    assert done.is_set(), "the response has no end"
    return reply


def encode(
    arrays: Mapping[str, Any], *, json_data: bool = False, **header: Any
) -> tuple[bytes, dict[str, str]]:
    """The body and headers of an inference request.

    Args:
        arrays: inputs by name.
        json_data: tensors in JSON rather than in binary.
        header: more of the JSON, such as ``parameters``.
    """
    inputs, rest = [], b""
    for name, array in arrays.items():
        tensor = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if json_data:
            tensor["data"] = array.ravel().tolist()
        else:
            data = to_binary(array)
            tensor["parameters"] = {"binary_data_size": len(data)}
            rest += data
        inputs.append(tensor)
    text = json.dumps({"inputs": inputs, **header}).encode()
    return text + rest, {} if json_data else {HEADER_LENGTH: str(len(text))}


def decode(reply: Reply) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of an inference response, and its tensors."""
    length = int(reply.headers.get(HEADER_LENGTH, len(reply.body)))
    header, rest = json.loads(reply.body[:length]), reply.body[length:]
    dtypes = {"FP32": np.float32, "INT32": np.int32}
    tensors: dict[str, Any] = {}
    for tensor in header["outputs"]:
        if "data" in tensor:
            tensors[tensor["name"]] = np.array(tensor["data"]).reshape(tensor["shape"])
            continue
        size = tensor["parameters"]["binary_data_size"]
        if tensor["datatype"] in dtypes:
            found = np.frombuffer(rest[:size], dtypes[tensor["datatype"]])
            tensors[tensor["name"]] = found.reshape(tensor["shape"])
        else:
            tensors[tensor["name"]] = rest[:size]
        rest = rest[size:]
    assert not rest
    return header, tensors
