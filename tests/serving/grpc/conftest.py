"""A service whose answers the test gives, behind a real gRPC server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio

from anynest.serving.grpc.messages import SERVICE, message_class
from anynest.serving.grpc.server import start_grpc
from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.requests.refused import Refused
from anynest.serving.settings import Settings
from anynest.serving.statistics import Statistics

PATIENCE = 60.0  # seconds; of waits that end by events


class FakeModel:
    name, version = "net", "1"
    output_names = ("scores", "label")

    def metadata(self, versions: tuple[str, ...] = ()) -> dict[str, Any]:
        x = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
        return {
            **{"name": "net", "versions": list(versions), "platform": "anynest"},
            **{"inputs": [x], "outputs": []},
        }

    def config(self) -> dict[str, Any]:
        x = {"name": "x", "data_type": "TYPE_FP32", "dims": [3]}
        parameters = {"stages": {"string_value": "3"}}
        return {"name": "net", "max_batch_size": 8, "input": [x], "parameters": parameters}


@dataclass
class FakeAnswer:
    stage: int
    stop_reason: str = ""
    model: FakeModel = field(default_factory=FakeModel)
    elapsed: float = 1.5
    width: int = 3

    def outputs(self, request: Any) -> dict[str, Any]:
        labels = np.empty(2, dtype=object)
        labels[0], labels[1] = b"cat\0", b""
        return {"scores": np.full((2, self.width), self.stage, np.float32), "label": labels}

    def parameters(self) -> dict[str, Any]:
        return {"stage": self.stage, "stop_reason": self.stop_reason, "deadline_met": True}


class FakeTicket:
    """Answers come from the test, through ``coming``; exceptions are raised."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.coming = asked, asyncio.Queue[Any]()
        self.begun, self.released = asyncio.Event(), asyncio.Event()

    def __enter__(self) -> FakeTicket:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()

    async def begin(self, request: Any) -> None:
        self.request = request
        self.begun.set()

    async def answer(self) -> Any:
        found = await self.coming.get()
        if isinstance(found, Exception):
            raise found
        return found

    def sending(self) -> None:
        pass

    async def answers(self) -> AsyncIterator[Any]:
        while not (found := await self.answer()).stop_reason:
            yield found
        yield found


class FakeRepository:
    """Model ``net`` is loaded, ``other`` is not yet."""

    def names(self) -> list[str]:
        return ["net", "other"]

    def versions(self, name: str) -> tuple[str, ...]:
        return ("1",)

    def loaded(self) -> list[FakeModel]:
        return [FakeModel()]

    def find(self, name: str, version: str | None = None) -> FakeModel | None:
        if name not in self.names() or version not in ("1", "", None):
            raise ProtocolError(404, f"there is no model {name!r}")
        return FakeModel() if name == "net" else None


@dataclass
class FakeService:
    settings: Settings = field(default_factory=Settings)
    ready: bool = True
    draining: bool = False
    refusal: Exception | None = None  # of the next admissions
    tickets: asyncio.Queue[FakeTicket] = field(default_factory=asyncio.Queue)
    reloaded: list[str] = field(default_factory=list)
    repository: FakeRepository = field(default_factory=FakeRepository)
    statistics: Statistics = field(default_factory=Statistics)

    def model(self, name: str, version: str | None = None) -> FakeModel:
        found = self.repository.find(name, version)
        if found is None:
            raise Refused("it is being loaded", unavailable=True)
        return found

    async def reload(self, name: str) -> None:
        self.repository.find(name)
        self.reloaded.append(name)

    def admit(self, model: Any, **asked: Any) -> FakeTicket:
        if self.refusal is not None:
            raise self.refusal
        ticket = FakeTicket(asked)
        self.tickets.put_nowait(ticket)
        return ticket


class Client:
    """Calls the methods of a server as any gRPC client does."""

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel

    def call(self, method: str, kind: str = "unary_unary") -> Any:
        """A method that takes and gives messages; ``kind`` as of the channel's methods."""
        name = "ModelStreamInferResponse" if kind == "stream_stream" else f"{method}Response"
        make = getattr(self.channel, kind)
        return make(
            f"/{SERVICE}/{method}",
            lambda message: message if type(message) is bytes else message.SerializeToString(),
            message_class(name).FromString,
        )

    async def error(self, call: Awaitable[Any]) -> Any:
        """The error that a call ends with."""
        with pytest.raises(grpc.RpcError) as caught:
            await call
        return caught.value


def message(name: str, /, **fields: Any) -> Any:
    """A message, such as ``ModelInferRequest``."""
    return message_class(name)(**fields)


def infer_request(**fields: Any) -> Any:
    """Of model ``net``, with two rows of three FP32 zeros."""
    given = {"model_name": "net", "raw_input_contents": [bytes(24)], **fields}
    request = message("ModelInferRequest", **given)
    if not request.inputs:
        request.inputs.add(name="x", datatype="FP32", shape=[2, 3])
    return request


@dataclass
class Bench:
    """What a test works with."""

    service: FakeService
    client: Client
    server: aio.Server
    port: int

    async def ticket(self) -> FakeTicket:
        """Of the next request that is admitted and begun."""
        async with asyncio.timeout(PATIENCE):
            found = await self.service.tickets.get()
            await found.begun.wait()
            return found

    infer_request = staticmethod(infer_request)
    message = staticmethod(message)
    answer = FakeAnswer
    patience = PATIENCE


@pytest.fixture
def on_server() -> Callable[..., None]:
    """Runs an async test against a server, which ends with it.

    Args:
        test: gets a ``Bench``.
        settings: of the service.
    """

    @asynccontextmanager
    async def running(settings: Settings) -> AsyncIterator[Bench]:
        service = FakeService(settings)
        server, port = await start_grpc(service, "127.0.0.1:0")  # type: ignore[arg-type]
        try:
            async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Bench(service, Client(channel), server, port)
        finally:
            await server.stop(None)

    def run(test: Callable[[Bench], Awaitable[None]], **settings: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(2 * PATIENCE), running(replace(Settings(), **settings)) as b:
                await test(b)

        asyncio.run(main())

    return run
