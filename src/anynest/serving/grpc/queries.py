"""The methods that compute nothing: health, metadata, configuration, statistics, models.

Descriptions are dictionaries, which HTTP sends as JSON and this module as messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.json_format import ParseDict

from ..descriptions import (
    describe_model,
    describe_repository,
    describe_server,
    describe_statistics,
)
from ..models import ServedModel
from ..protocol.errors import ProtocolError
from ..service import Service
from .messages import message_class

Query = Callable[[Service, Any], Mapping[str, Any]]
LOAD = "RepositoryModelLoad"  # the one that changes something


def _model(service: Service, request: Any) -> ServedModel:
    return service.model(request.name, request.version or None)


def _model_ready(service: Service, request: Any) -> Mapping[str, Any]:
    try:
        _model(service, request)
    except ProtocolError as error:
        if error.status == 404:
            raise
        return {"ready": False}
    return {"ready": service.ready}


def _index(service: Service, request: Any) -> Mapping[str, Any]:
    models = describe_repository(service)
    return {"models": [m for m in models if m["state"] == "READY" or not request.ready]}


# name of the method -> what it answers
QUERIES: dict[str, Query] = {
    "ServerLive": lambda service, request: {"live": True},
    "ServerReady": lambda service, request: {"ready": service.ready},
    "ServerMetadata": lambda service, request: describe_server(),
    "ModelReady": _model_ready,
    "ModelMetadata": lambda service, request: describe_model(service, _model(service, request)),
    "ModelConfig": lambda service, request: {"config": _model(service, request).config()},
    "ModelStatistics": lambda service, request: describe_statistics(
        service, request.name, request.version
    ),
    "RepositoryIndex": _index,
    LOAD: lambda service, request: {},
}


async def answer_query(service: Service, method: str, request: Any) -> Any:
    """The response message of a method in ``QUERIES``.

    Raises:
        ProtocolError: there is no such model.
    """
    if method == LOAD:
        await service.reload(request.model_name)
    found = QUERIES[method](service, request)
    return ParseDict(found, message_class(f"{method}Response")())
