"""OpenTelemetry traces: a span for each request, with one for each of its steps.

The span's parent is that of the header ``traceparent`` (W3C Trace Context). Spans are made when a
request has ended, so nothing is in the way of an answer.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

from ..._version import __version__
from .records import Record

NANOSECONDS = 1_000_000_000


class Tracing:
    """Makes spans of records. A context manager that sends what is left.

    Args:
        processor: where spans go to; None: by OTLP over HTTP, as the variables
            ``OTEL_EXPORTER_OTLP_*`` say.
    """

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        named = "OTEL_SERVICE_NAME" in os.environ
        self._provider = TracerProvider(
            resource=Resource.create({} if named else {"service.name": "anynest"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor or _otlp())
        self._tracer = self._provider.get_tracer("anynest.serving", __version__)

    def __call__(self, record: Record) -> None:
        """Make the spans of a request that has ended."""
        began = round(record.at * NANOSECONDS)
        span = self._tracer.start_span(
            name_of(record),
            context=extract(record.headers),
            kind=SpanKind.SERVER,
            attributes=attributes_of(record),
            start_time=began,
        )
        inner = set_span_in_context(span)
        for stage, rows, seconds, end in record.steps:
            at = began + round(end * NANOSECONDS)
            step = self._tracer.start_span(
                f"stage {stage}",
                context=inner,
                attributes={"anynest.stage": stage, "anynest.batch_rows": rows},
                start_time=at - round(seconds * NANOSECONDS),
            )
            step.end(at)
        if is_error(record.status):
            span.set_status(StatusCode.ERROR, record.found.get("outcome"))
        span.end(began + round(record.seconds * NANOSECONDS))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def name_of(record: Record) -> str:
    """A span's name, of which there are few."""
    if record.protocol == "grpc":
        return record.path.removeprefix("/")
    return f"{record.method} infer" if "model" in record.found else record.method


def attributes_of(record: Record) -> dict[str, Any]:
    """OpenTelemetry's conventional attributes, and ours."""
    if record.protocol == "grpc":
        own: dict[str, Any] = {"rpc.system": "grpc", "rpc.response.status_code": record.status}
    else:
        own = {
            "http.request.method": record.method,
            "url.path": record.path,
            "http.response.status_code": record.status,
        }
    own["client.address"] = record.client
    own |= {f"anynest.{name}": value for name, value in record.found.items()}
    return {name: value for name, value in own.items() if value is not None}


def is_error(status: int | str | None) -> bool:
    """Whether a status is the server's fault, as OpenTelemetry sees it.

    >>> [is_error(status) for status in (200, 404, 503, "OK", "DEADLINE_EXCEEDED")]
    [False, False, True, False, True]
    """
    if isinstance(status, int):
        return status >= 500
    return status in ("UNKNOWN", "DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL", "UNIMPLEMENTED")


def _otlp() -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())
