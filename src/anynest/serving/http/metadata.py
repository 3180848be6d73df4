"""The endpoints that compute nothing: health, metadata, configuration, statistics, models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..descriptions import (
    describe_model,
    describe_repository,
    describe_server,
    describe_statistics,
)
from ..models import ServedModel
from ..protocol.errors import ProtocolError
from ..protocol.inference import parse_object
from ..service import Service
from .bodies import Body, slow_body
from .openapi import describe
from .responses import json_response
from .scope import ARRIVED

MAX_BODY = 1 << 16  # bytes of a request that changes or lists models
STEMS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
Inquiry = Callable[[Service, dict[str, str]], Any]  # the service, and the path's parameters

_log = logging.getLogger(__name__)


def _model(service: Service, path: dict[str, str]) -> ServedModel:
    return service.model(path["model"], path.get("version"))


def _ready(service: Service, path: dict[str, str]) -> Any:
    if not service.ready:
        raise ProtocolError(503, "the server is not ready; try again")
    return {"ready": True}


def _model_ready(service: Service, path: dict[str, str]) -> Any:
    return {"name": _model(service, path).name, **_ready(service, path)}


def _statistics(service: Service, path: dict[str, str]) -> Any:
    return describe_statistics(service, path.get("model"), path.get("version"))


def _description(service: Service) -> Any:
    names = service.repository.names()
    versions = {version for name in names for version in service.repository.versions(name)}
    return describe(names, sorted(versions, key=int))


# path -> what it answers
INQUIRIES: dict[str, Inquiry] = {
    "/v2": lambda service, path: describe_server(),
    "/v2/health/live": lambda service, path: {"live": True},
    "/v2/health/ready": _ready,
    "/v2/models/stats": _statistics,
    "/openapi.json": lambda service, path: _description(service),
}
OF_MODELS: dict[str, Inquiry] = {
    "": lambda service, path: describe_model(service, _model(service, path)),
    "/ready": _model_ready,
    "/config": lambda service, path: _model(service, path).config(),
    "/stats": _statistics,
}


def metadata_routes(service: Service) -> list[Route]:
    """The routes of all of them."""

    def route(path: str, inquiry: Inquiry) -> Route:
        async def endpoint(request: Request) -> Response:
            return await json_response(request, inquiry(service, request.path_params))

        return Route(path, endpoint, methods=["GET"])

    async def index(request: Request) -> Response:
        given = await _read_object(service, request)
        models = describe_repository(service)
        if given.get("ready") is True:
            models = [model for model in models if model["state"] == "READY"]
        return await json_response(request, models)

    async def load(request: Request) -> Response:
        given = await _read_object(service, request)
        if given.get("parameters"):
            raise ProtocolError(400, "a model is loaded from where it came; send no parameters")
        name = request.path_params["model"]
        try:
            await service.reload(name)
        except ProtocolError:
            raise
        except Exception as error:
            _log.error("model %s cannot be loaded: %s", name, error)
            raise ProtocolError(
                500, f"model {name} cannot be loaded, and goes on as it was; the log says why"
            ) from error
        return await json_response(request, {})

    return [
        *(route(path, inquiry) for path, inquiry in INQUIRIES.items()),
        *(route(stem + path, inquiry) for stem in STEMS for path, inquiry in OF_MODELS.items()),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", load, methods=["POST"]),
    ]


async def _read_object(service: Service, request: Request) -> dict[str, Any]:
    """The JSON object of a small body, which may be missing."""
    body = Body(request.receive, request.headers, MAX_BODY)
    body.check()
    seconds = service.settings.receive_seconds
    try:
        async with asyncio.timeout_at(request.scope[ARRIVED] + seconds):
            data = await body.read()
    except TimeoutError:
        raise slow_body(seconds) from None
    return parse_object(data) if data.strip() else {}
