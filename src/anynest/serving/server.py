"""The server process: HTTP by uvicorn, gRPC by grpc.aio, signals, and an orderly end.

The first SIGTERM or SIGINT drains: not ready at once, new requests are refused, accepted ones are
answered, then the process ends. A second one has its default effect. SIGHUP loads the models again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .connections import limited
from .grpc.server import start_grpc
from .service import Service
from .telemetry.records import RecordedApp, RecordedCalls, Sink

_log = logging.getLogger(__name__)

KEEP_ALIVE = 650  # seconds; above the 60 of nginx and AWS, and the 600 of Google's load balancers
CLOSE_SECONDS = 5  # for the last responses to be received, after the last answer
BACKLOG = 2048
FILES = 65_536  # open at most, where the system lets us
SPARE_FILES = 128  # not for connections


@dataclass(frozen=True)
class Addresses:
    """Where a server listens.

    Attributes:
        http: a URL.
        grpc: host and port; None without gRPC.
    """

    http: str
    grpc: str | None


class Server:
    """A service with its listeners.

    Args:
        service: not yet started.
        app: the ASGI application round it.
        listener: of ``listen``, for HTTP.
        grpc: host and port for gRPC; None: no gRPC.
        sinks: what records of requests go to.
        on_ready: called when all models are warm.
        on_reload: called on SIGHUP, before the models are loaded again.
    """

    def __init__(
        self,
        service: Service,
        app: ASGIApp,
        listener: socket.socket,
        grpc: tuple[str, int] | None,
        *,
        sinks: Sequence[Sink] = (),
        on_ready: Callable[[Addresses], None],
        on_reload: Callable[[], None] = lambda: None,
    ) -> None:
        self.service, self._listener, self._grpc_address = service, listener, grpc
        self._sinks, self._on_ready, self._on_reload = sinks, on_ready, on_reload
        app = _ClosesWhileDraining(app, service)
        self._http = _Uvicorn(
            uvicorn.Config(
                RecordedApp(app, sinks) if sinks else app,
                http=limited(  # type: ignore[arg-type]
                    header_seconds=service.settings.receive_seconds,
                    max_connections=raise_file_limit() - SPARE_FILES,
                ),
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal ends it.

        Returns:
            the number of accepted requests that were not answered in the time for draining.

        Raises:
            OSError: the gRPC port is in use.
            Exception: of a model that cannot be loaded.
        """
        self._handle_signals()
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        stopping = asyncio.create_task(self._stopping.wait())
        grpc = None
        try:
            port = None
            if self._grpc_address is not None:
                grpc, port = await start_grpc(
                    self.service,
                    _join(*self._grpc_address),
                    interceptors=[RecordedCalls(self._sinks)] if self._sinks else [],
                )
            starting = asyncio.create_task(self.service.start())
            await asyncio.wait({starting, stopping, http}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._on_ready(self._addresses(port))
                await asyncio.wait({stopping, http}, return_when=asyncio.FIRST_COMPLETED)
            else:
                starting.cancel()
        finally:
            left = await self.service.stop()
            if grpc is not None:
                await grpc.stop(CLOSE_SECONDS)
            self._http.should_exit = True
            stopping.cancel()
            await http
        return left

    def _addresses(self, grpc_port: int | None) -> Addresses:
        host, port = self._listener.getsockname()[:2]
        grpc = None
        if self._grpc_address is not None and grpc_port is not None:
            grpc = _join(self._grpc_address[0], grpc_port)
        return Addresses(f"http://{_join(host, port)}", grpc)

    # -- signals ----------------------------------------------------------------------------------
    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()  # which removes the handlers when it is closed
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)

    def _stop(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        _log.info("draining: %d requests in flight", self.service.in_flight)
        self.service.draining = True
        self._stopping.set()

    def _reload(self) -> None:
        self._on_reload()
        task = asyncio.create_task(self._reload_models())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_models(self) -> None:
        try:
            models = await self.service.reload()
        except Exception as error:  # of any kind: the old models go on
            _log.error("the models were not loaded again: %s", " ".join(str(error).split()))
        else:
            names = ", ".join(f"{model.name} {model.version}" for model in models)
            _log.info("loaded again: %s", names)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave the signals alone."""
        yield


class _ClosesWhileDraining:
    """Tells clients of a draining server to connect anew, so that they find another one."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._service.draining:
                headers = [pair for pair in message["headers"] if pair[0] != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_closing)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens for HTTP.

    Raises:
        OSError: the address is in use, or none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(BACKLOG)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise OSError(
            f"HTTP cannot listen at {_join(host, port)}: {error.strerror or error}; use another "
            "--host or --port"
        ) from None
    return found


def raise_file_limit() -> int:
    """Let the process open more files, where the system lets it; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return FILES if soft == resource.RLIM_INFINITY else soft


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
