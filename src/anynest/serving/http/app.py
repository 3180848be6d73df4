"""The application: routes, guard and errors in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route
from torch import nn

from ..protocol.errors import ProtocolError
from ..repository import Repository
from ..service import Service
from ..settings import Settings
from .guard import Guard
from .inference import InferenceEndpoint
from .metadata import STEMS, metadata_routes
from .responses import on_error
from .unread import UnreadBodies


def create_app(
    served: Service | Repository | nn.Module | str | Path,
    settings: Settings | None = None,
    *,
    extra_routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """An ASGI application that serves models over HTTP, for any ASGI server.

    Args:
        served: a run folder, an exported folder, a network with example inputs, or a repository of
            several; the application loads them when it starts and answers what it has accepted
            before it stops. A service is started and stopped by whoever made it.
        settings: bounds and defaults; None: those of the service, or the defaults.
        extra_routes: more of them, behind the same guard, such as a page at ``/``.

    Raises:
        ValueError: settings beside a service, which has its own.

    Example:
        >>> app = create_app("runs/digits")  # doctest: +SKIP
        >>> uvicorn.run(app, timeout_keep_alive=75)  # doctest: +SKIP
    """
    own = not isinstance(served, Service)
    if isinstance(served, Service):
        if settings is not None:
            raise ValueError("settings must be given to the service, found some beside it")
        service = served
    elif isinstance(served, Repository):
        service = Service(served, settings)
    else:
        repository = Repository()
        repository.add(served)
        service = Service(repository, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            if own:
                await service.start()  # a model that cannot be loaded: the others are closed
            yield
        finally:
            if own:
                await service.stop()

    endpoints = {"/infer": False, "/infer_stream": True}
    app = Starlette(
        routes=[
            *(
                Route(stem + path, InferenceEndpoint(service, stream=stream), methods=["POST"])
                for stem in STEMS
                for path, stream in endpoints.items()
            ),
            *metadata_routes(service),
            *extra_routes,
        ],
        middleware=[Middleware(UnreadBodies), Middleware(Guard, settings=service.settings)],
        exception_handlers=dict.fromkeys((HTTPException, ProtocolError, Exception), on_error),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would be neither an answer nor an error line
    return app
