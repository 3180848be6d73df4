"""What a server says of itself and its models, for HTTP as JSON and for gRPC as messages."""

from __future__ import annotations

from typing import Any

from .._version import __version__
from .models import ServedModel
from .service import Service

EXTENSIONS = (
    *("binary_tensor_data", "parameters", "statistics"),
    *("model_configuration", "model_repository"),
)


def describe_server() -> dict[str, Any]:
    """Name, version and extensions of the protocol."""
    return {"name": "anynest", "version": __version__, "extensions": list(EXTENSIONS)}


def describe_model(service: Service, model: ServedModel) -> dict[str, Any]:
    """A model's metadata, with all versions of its name."""
    return model.metadata(service.repository.versions(model.name))


def describe_statistics(
    service: Service, name: str | None = None, version: str | None = None
) -> dict[str, Any]:
    """The counts of all models, of a name's versions, or of one version.

    Raises:
        ProtocolError: there is no such model.
    """
    if name:
        service.repository.find(name, version)
    return {
        "model_stats": [
            service.statistics.of(model).describe(model.name, model.version)
            for model in service.repository.loaded()
            if name in (None, "", model.name) and version in (None, "", model.version)
        ]
    }


def describe_repository(service: Service) -> list[dict[str, str]]:
    """Every version of every model, and whether it can be asked."""
    found = []
    for name in service.repository.names():
        for version in service.repository.versions(name):
            entry = {"name": name, "version": version, "state": "READY", "reason": ""}
            if service.repository.find(name, version) is None:
                entry.update(state="LOADING", reason="not loaded yet")
            elif not service.ready:
                reason = "the server stops" if service.draining else "the server is not ready"
                entry.update(state="UNAVAILABLE", reason=reason)
            found.append(entry)
    return found
