"""The gRPC server, on the running event loop."""

from __future__ import annotations

from collections.abc import Sequence

from grpc import aio

from ..service import Service
from .servicer import Servicer

STREAMS = 1024  # calls of one connection at once


async def start_grpc(
    service: Service, address: str, *, interceptors: Sequence[aio.ServerInterceptor] = ()
) -> tuple[aio.Server, int]:
    """Start to answer gRPC calls.

    When the server stops, ``await service.stop(...)`` answers what was accepted; then
    ``await server.stop(grace)`` ends the streams that clients still hold open.

    Args:
        service: that computes; its settings bound the messages.
        address: host and port, such as ``127.0.0.1:8001``; port 0 picks a free one.
        interceptors: of every call.

    Returns:
        the server and its port.

    Raises:
        OSError: the address is in use, or none of this machine.
    """
    server = aio.server(
        interceptors=interceptors,
        options=[
            ("grpc.max_receive_message_length", service.settings.max_body),
            ("grpc.max_concurrent_streams", STREAMS),
            ("grpc.per_message_decompression", 0),  # see messaging.py
            ("grpc.so_reuseport", 0),  # a port in use is an error
        ],
    )
    server.add_generic_rpc_handlers((Servicer(service),))
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise OSError(f"gRPC cannot listen at {address}: use another --grpc-port") from None
    await server.start()
    return server, port
