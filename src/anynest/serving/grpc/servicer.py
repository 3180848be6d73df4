"""Which handler a call gets: ``inference.GRPCInferenceService``.

A handler is made when the headers of a call arrive: its time is counted from then on, and without
the token it is refused before its message is received.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ..authorization import check_token
from ..protocol.errors import ProtocolError
from ..service import Service
from .calls import InferCall
from .messages import SERVICE, message_class
from .messaging import parse, receive, serialize
from .queries import QUERIES, answer_query
from .status import abort, guarded

WITHOUT_TOKEN = ("ServerLive", "ServerReady")  # probes


class Servicer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers the calls that a ``grpc.aio`` server receives.

    Args:
        service: that computes.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def service(self, details: Any) -> Any:
        """The handler of a call; None if there is no such method."""
        arrived = time.monotonic()
        name, _, method = details.method.removeprefix("/").partition("/")
        if name != SERVICE:
            return None
        headers = {key: text for key, text in details.invocation_metadata if type(text) is str}

        async def query(context: Any) -> Any:
            return await self._query(method, context)

        async def infer(context: Any) -> Any:
            return await InferCall(self._service, context, headers, arrived).infer()

        async def stream(context: Any) -> None:
            await InferCall(self._service, context, headers, arrived).stream()

        def handled(answer: Callable[[Any], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def handler(_: object, context: Any) -> Any:
                try:
                    async with guarded():
                        if method not in WITHOUT_TOKEN:
                            token = self._service.settings.token
                            check_token(headers.get("authorization", ""), token)
                        return await answer(context)
                except ProtocolError as error:
                    return await abort(context, error)

            return handler

        # whatever a client's stub calls them: messages are received, and counted, by `receive`
        if method == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(handled(stream))
        if method == "ModelInfer" or method in QUERIES:
            answer = infer if method == "ModelInfer" else query
            return grpc.stream_unary_rpc_method_handler(handled(answer), None, serialize)
        return None

    async def _query(self, method: str, context: Any) -> Any:
        settings = self._service.settings
        data = await receive(context, settings.receive_seconds)
        request, _ = parse(data or b"", message_class(f"{method}Request"), settings.max_body)
        return await answer_query(self._service, method, request)
