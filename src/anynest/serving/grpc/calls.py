"""Inference calls: one answer, or a stream of requests each of whose stages is a response.

The last response to a request says so. Where time ends after a stage was sent, the last repeats that
stage; it has no outputs where the client can take an empty one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from ..deadlines import duration
from ..protocol.errors import ProtocolError
from ..protocol.inference import InferRequest
from ..requests.answer import Answer
from ..requests.ticket import Ticket
from ..service import Service
from .inference import (
    ModelInferRequest,
    ModelInferResponse,
    read_infer,
    write_infer,
    write_parameters,
)
from .messages import message_class
from .messaging import parse, receive, send
from .status import RETRY, guarded, retry_after_ms

FINAL = "triton_final_response"  # parameter of a response: none follows to this request
EMPTY_FINAL = "triton_enable_empty_final_response"  # of a request: the last may have no outputs
CONCURRENT = 256  # requests of one stream at once; further ones are not received meanwhile

ModelStreamInferResponse = message_class("ModelStreamInferResponse")


@dataclass
class InferCall:
    """One call of ``ModelInfer`` or ``ModelStreamInfer``.

    Args:
        service: that computes.
        context: gRPC's, of the call.
        headers: metadata of the call.
        arrived: when they arrived, on ``time.monotonic``.
    """

    service: Service
    context: Any
    headers: Mapping[str, str]
    arrived: float
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def infer(self) -> Any:
        """The response of ``ModelInfer``.

        Raises:
            ProtocolError: the request cannot be answered.
        """
        data = await receive(self.context, self.service.settings.receive_seconds)
        if data is None:
            raise ProtocolError(400, "the call must have one message, found none")
        message, nbytes = parse(data, ModelInferRequest, self.service.settings.max_body)
        async with self._accepted(message, nbytes, self.arrived) as (request, ticket):
            response = _response(request, await ticket.answer())
            ticket.sending()
            return response

    async def stream(self) -> None:
        """Answer the requests of ``ModelStreamInfer`` side by side until the client ends it."""
        free = asyncio.Semaphore(CONCURRENT)
        async with asyncio.TaskGroup() as group:
            while (data := await receive(self.context)) is not None:
                await free.acquire()
                task = group.create_task(self._answer_in_stream(data, time.monotonic()))
                task.add_done_callback(lambda _: free.release())

    async def _answer_in_stream(self, data: bytes, arrived: float) -> None:
        """Answer one request of a stream; its errors are responses, and the stream goes on."""
        message = ModelInferRequest()
        try:
            async with guarded():
                message, nbytes = parse(data, ModelInferRequest, self.service.settings.max_body)
                await self._send_stages(message, nbytes, arrived)
        except ProtocolError as error:
            about = f"request {message.id[:80]!r}: " if message.id else ""
            response = ModelInferResponse(
                model_name=message.model_name, model_version=message.model_version, id=message.id
            )
            retry = retry_after_ms(error)
            hint = {} if retry is None else {RETRY: retry}
            write_parameters(response.parameters, {FINAL: True, **hint})
            await self._send(response, about + error.message)

    async def _send_stages(self, message: Any, nbytes: int, arrived: float) -> None:
        async with self._accepted(message, nbytes, arrived) as (request, ticket):
            stage = 0
            async for answer in ticket.answers():
                final = bool(answer.stop_reason)
                response = _response(request, answer)
                if final and answer.stage == stage and request.parameters.get(EMPTY_FINAL):
                    response.ClearField("outputs")
                    response.ClearField("raw_output_contents")
                write_parameters(response.parameters, {FINAL: final})
                if final:
                    ticket.sending()
                await self._send(response)
                stage = answer.stage

    async def _send(self, response: Any, error: str = "") -> None:
        message = ModelStreamInferResponse(infer_response=response, error_message=error)
        async with self._writing:  # one message after the other
            await send(self.context, message)

    @asynccontextmanager
    async def _accepted(
        self, message: Any, nbytes: int, arrived: float
    ) -> AsyncIterator[tuple[InferRequest, Ticket]]:
        """Admit a request, read it, and have it computed until the block ends."""
        service = self.service
        left = self.context.time_remaining()
        with service.admit(
            service.model(message.model_name, message.model_version or None),
            nbytes=nbytes,
            arrived=arrived,
            seconds=duration(
                envoy_ms=self.headers.get("x-envoy-expected-rq-timeout-ms"),
                anynest_ms=self.headers.get("anynest-timeout-ms"),
                grpc_seconds=None if left is None else left + time.monotonic() - arrived,
            ),
            client=address_of(self.context.peer()),
        ) as ticket:
            request = read_infer(message, max_elements=service.settings.max_body)
            await ticket.begin(request)
            yield request, ticket


def _response(request: InferRequest, answer: Answer) -> Any:
    model = answer.model
    outputs = answer.outputs(request)
    return write_infer(model.name, model.version, request, outputs, answer.parameters())


def address_of(peer: str) -> str:
    """The address of gRPC's name of a client, as HTTP would call it.

    >>> address_of("ipv4:127.0.0.1:5123"), address_of("ipv6:%5B::1%5D:5123")
    ('127.0.0.1', '::1')
    """
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return peer
    return unquote(rest).rpartition(":")[0].strip("[]")
