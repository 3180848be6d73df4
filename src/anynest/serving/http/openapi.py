"""The description of the HTTP interface (OpenAPI 3.1), of ``GET /openapi.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..._version import __version__
from ..protocol.inference import MAX_INPUTS
from ..protocol.tensors import DATATYPES, MAX_DIMENSIONS

ERRORS = {
    400: "Malformed",
    401: "The bearer token is missing or wrong",
    403: "The host or the origin is not allowed",
    404: "No such model or version",
    405: "The path does not take this method",
    408: "The body came too late",
    413: "Too large",
    415: "The content encoding is neither gzip nor deflate",
    429: "Too many requests of this client in flight",
    499: "The client has gone",
    500: "The computation failed",
    503: "Refused: an answer in time is impossible, or the server is not ready",
    504: "No stage was done in time",
}
ALWAYS = (401, 403, 405)
INFER = (400, 404, 408, 413, 415, 429, 499, 500, 503, 504)

BYTES = {"type": "string", "format": "binary"}
INTEGER = {"type": "integer", "minimum": 0}
PARAMETERS = {
    "type": "object",
    "properties": {
        "timeout": {"type": "integer", "description": "Deadline in microseconds from arrival."},
        "priority": {"type": "integer", "minimum": 0, "description": "1 is highest, 0 default."},
        "stages": {"type": "integer", "minimum": 1, "description": "Compute at most this many."},
        "confidence": {
            **{"type": "number", "minimum": 0, "maximum": 1},
            "description": "Stop at the first stage whose confidence is at least this.",
        },
        "binary_data_output": {"type": "boolean", "default": False},
    },
}
NAME = {"type": "string", "minLength": 1}
SHAPE = {"type": "array", "items": INTEGER, "maxItems": MAX_DIMENSIONS}
DATATYPE = {"type": "string", "enum": list(DATATYPES)}
SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "pattern": "^[^\\r\\n]+$"}},
        "additionalProperties": False,
    },
    "InputTensor": {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            **{"name": NAME, "shape": SHAPE, "datatype": DATATYPE},
            "data": {"type": "array", "description": "Flat in row-major order, or nested."},
            "parameters": {
                "type": "object",
                "properties": {
                    "binary_data_size": INTEGER,
                    "content_type": {"type": "string", "description": "base64: BYTES texts are."},
                },
            },
        },
    },
    "RequestedOutput": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": NAME,
            "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
        },
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": PARAMETERS,
            "inputs": {
                **{"type": "array", "minItems": 1, "maxItems": MAX_INPUTS},
                "items": {"$ref": "#/components/schemas/InputTensor"},
            },
            "outputs": {
                **{"type": "array", "maxItems": MAX_INPUTS},
                "items": {"$ref": "#/components/schemas/RequestedOutput"},
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "properties": {
                    "stage": {"type": "integer", "minimum": 1},
                    "stages": {"type": "integer", "minimum": 1},
                    "deadline_met": {"type": "boolean"},
                    "elapsed_us": INTEGER,
                    "stop_reason": {"type": "string"},
                },
            },
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "shape", "datatype"],
                    "properties": {
                        **{"name": NAME, "shape": SHAPE, "datatype": DATATYPE},
                        "data": {"type": "array"},
                        "parameters": {
                            "type": "object",
                            "properties": {"binary_data_size": INTEGER},
                        },
                    },
                },
            },
        },
    },
}
HEADERS = [
    {
        **{"name": name, "in": "header", "schema": schema, "required": False},
        "description": description,
    }
    for name, schema, description in (
        ("anynest-timeout-ms", {"type": "number"}, "Deadline in milliseconds from arrival."),
        ("x-envoy-expected-rq-timeout-ms", {"type": "integer"}, "The same, as Envoy sends it."),
        (
            "Inference-Header-Content-Length",
            INTEGER,
            "Bytes of the JSON before compression; binary tensors follow it.",
        ),
    )
]


def describe(models: Sequence[str], versions: Sequence[str]) -> dict[str, Any]:
    """The description as JSON values.

    Args:
        models: names of the models that are served.
        versions: of any of them.
    """
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("Server metadata", _object("name", "version", "extensions"))},
        "/v2/health/live": {"get": _operation("Live", _object("live"))},
        "/v2/health/ready": {"get": _operation("Ready", _object("ready"), (503,))},
        "/v2/repository/index": {
            "post": _operation(
                "Models and their state", {"type": "array", "items": _object("name")}
            )
        },
        "/v2/models/stats": {"get": _operation("Statistics of all models", _object("model_stats"))},
        "/openapi.json": {"get": _operation("This description", _object("openapi", "paths"))},
    }
    model, version = _in_path("model", models), _in_path("version", versions)
    paths["/v2/repository/models/{model}/load"] = {
        "parameters": [model],
        "post": _operation("Load again from its files", _object(), (404, 500, 503)),
    }
    for stem, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, version]),
    ):
        for path, operation in _model_operations().items():
            paths[stem + path] = {"parameters": parameters, **operation}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "anynest",
            "version": __version__,
            "description": "Open Inference Protocol v2; every answer comes by its deadline.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _model_operations() -> dict[str, Any]:
    unknown = (404, 503)
    response = {"$ref": "#/components/schemas/InferResponse"}
    binary = {"application/octet-stream": {"schema": BYTES}}
    infer = _operation("The newest stage by the deadline", response, INFER)
    infer["responses"]["200"]["content"].update(binary)
    stream = _operation("Each stage as it comes: an InferResponse each", response, INFER)
    stream["responses"]["200"]["content"] = {
        media: {} for media in ("text/event-stream", "application/x-ndjson")
    }
    for operation in (infer, stream):
        content = {"schema": {"$ref": "#/components/schemas/InferRequest"}}
        operation["parameters"] = HEADERS
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": content, **binary, "image/*": {"schema": BYTES}},
        }
    return {
        "": {"get": _operation("Metadata", _object("name", "inputs", "outputs"), unknown)},
        "/ready": {"get": _operation("Ready", _object("ready"), unknown)},
        "/config": {"get": _operation("Configuration", _object("name"), unknown)},
        "/stats": {"get": _operation("Statistics", _object("model_stats"), unknown)},
        "/infer": {"post": infer},
        "/infer_stream": {"post": stream},
    }


def _operation(summary: str, schema: Any, errors: Iterable[int] = ()) -> dict[str, Any]:
    """One operation: what it answers with 200, and its errors."""
    responses: dict[str, Any] = {
        "200": {"description": summary, "content": {"application/json": {"schema": schema}}}
    }
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status in sorted({*ALWAYS, *errors}):
        responses[str(status)] = {"description": ERRORS[status], "content": error}
    return {"summary": summary, "responses": responses, "security": [{}, {"token": []}]}


def _in_path(name: str, values: Sequence[str]) -> dict[str, Any]:
    """A parameter that is a part of the path."""
    known = {"enum": list(values)} if values else {}
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", **known}}


def _object(*required: str) -> dict[str, Any]:
    return {"type": "object", "required": list(required)} if required else {"type": "object"}
