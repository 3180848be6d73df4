"""One record for each request of any protocol, which the access log and the traces are made of.

A protocol's edge opens a record. The service's observer, which is called in the same task or in one
that it started, adds what became of the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from grpc import aio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..batches import Timing
from ..grpc.calls import address_of
from ..models import ServedModel
from ..requests.answer import Answer

STREAM = "/ModelStreamInfer"  # the method whose calls carry many requests


@dataclass(eq=False)
class Record:
    """A request, and what became of it.

    Attributes:
        protocol: ``http`` or ``grpc``.
        method: of HTTP; ``""`` for gRPC.
        path: without the query; the method of gRPC.
        client: its address.
        headers: of the request, in lower case.
        streams: a gRPC call that carries many requests; each of them has a record of its own, too.
        at: seconds since the epoch when it arrived.
        seconds: from its arrival to the end of its response.
        status: of HTTP, or a name of gRPC; None while there is none.
        sent: bytes of the response's body; 0 for gRPC.
        found: what the service says: model, version, outcome, stage, deadline and the like.
        steps: that computed the answer.
    """

    protocol: str
    method: str
    path: str
    client: str
    headers: Mapping[str, str]
    streams: bool = False
    at: float = field(default_factory=time.time)
    seconds: float = 0.0
    status: int | str | None = None
    sent: int = 0
    found: dict[str, Any] = field(default_factory=dict)
    steps: Sequence[Timing] = ()


Sink = Callable[[Record], None]
_current: ContextVar[Record | None] = ContextVar("anynest.record", default=None)


@contextmanager
def recording(record: Record, sinks: Sequence[Sink]) -> Iterator[Record]:
    """Make a record the current one, and hand it to the sinks at the end."""
    began, token = time.monotonic(), _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)
        record.seconds = time.monotonic() - began
        for sink in sinks:
            sink(record)


class RecordedApp:
    """An ASGI application whose requests are recorded."""

    def __init__(self, app: ASGIApp, sinks: Sequence[Sink]) -> None:
        self._app, self._sinks = app, sinks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope["client"][0] if scope.get("client") else ""
        headers = Headers(scope=scope)
        record = Record("http", scope["method"], scope["path"], client, headers)

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            else:
                record.sent += len(message.get("body", b""))
            await send(message)

        with recording(record, self._sinks):
            await self._app(scope, receive, send_noted)


class RecordedCalls(aio.ServerInterceptor):  # type: ignore[misc]
    """Records the calls of a gRPC server whose handlers take a stream of messages."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The handler of a call, recorded."""
        handler = await continuation(details)
        if handler is None:
            return None
        headers = {key: text for key, text in details.invocation_metadata if type(text) is str}

        async def recorded(messages: Any, context: Any) -> Any:
            record = Record("grpc", "", details.method, address_of(context.peer()), headers)
            record.streams = details.method.endswith(STREAM)
            with recording(record, self._sinks):
                record.status = "UNKNOWN"  # of an error that nobody handles
                try:
                    response = await behavior(messages, context)
                except asyncio.CancelledError:
                    record.status = "CANCELLED"
                    raise
                except aio.AbortError:
                    record.status = context.code().name
                    raise
                record.status = "OK"
                return response

        behavior = handler.stream_stream if handler.response_streaming else handler.stream_unary
        return handler._replace(
            **{"stream_stream" if handler.response_streaming else "stream_unary": recorded}
        )


class RecordingObserver:
    """Adds to the current record what the service says. One of the service's observers."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def received(self, model: ServedModel) -> None:
        """A request was accepted: how it ends is told later."""

    def refused(self, model: ServedModel, reason: str) -> None:
        """A request was not accepted."""
        self._note(model, "refused", reason=reason)

    def answered(self, model: ServedModel, answer: Answer, rows: int) -> None:
        """A request got its last answer."""
        self._note(
            model,
            "answered",
            rows=rows,
            stage=answer.stage,
            stages=answer.stages,
            stop_reason=answer.stop_reason,
            deadline_ms=round(1e3 * answer.deadline, 3),
            deadline_met=answer.deadline_met,
            seconds=answer.elapsed,
            steps=answer.timings,
        )

    def failed(self, model: ServedModel, status: int) -> None:
        """An accepted request got no answer."""
        self._note(model, outcome_of(status))

    def left(self, model: ServedModel) -> None:
        """The client of an accepted request has gone."""
        self._note(model, "left")

    def step(self, model: ServedModel, stage: int, rows: int, seconds: float) -> None:
        """A step was computed: for many requests."""

    def _note(
        self,
        model: ServedModel,
        outcome: str,
        *,
        seconds: float = 0.0,
        steps: Sequence[Timing] = (),
        **found: Any,
    ) -> None:
        record = _current.get()
        if record is None:
            return
        told = {"model": model.name, "version": model.version, "outcome": outcome, **found}
        if not record.streams:
            record.steps = steps
            record.found.update(told)
            return
        own = Record(record.protocol, "", record.path, record.client, record.headers)
        own.at, own.seconds, own.steps, own.found = own.at - seconds, seconds, steps, told
        for sink in self._sinks:
            sink(own)


def outcome_of(status: int) -> str:
    """The outcome of an accepted request by its HTTP status.

    >>> [outcome_of(status) for status in (504, 503, 500, 400)]
    ['timed_out', 'stopped', 'failed', 'invalid']
    """
    return {504: "timed_out", 503: "stopped", 500: "failed"}.get(status, "invalid")
