"""Traces: a span per request under the client's, and one per step."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from opentelemetry.trace import SpanKind, StatusCode

from anynest.serving.batches import Timing
from anynest.serving.telemetry.records import Record
from anynest.serving.telemetry.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECOND = 1_000_000_000


def spans(*records: Record) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    with Tracing(SimpleSpanProcessor(exporter)) as tracing:
        for record in records:
            tracing(record)
    return exporter.get_finished_spans()


def answered() -> Record:
    record = Record(
        protocol="http",
        method="POST",
        path="/v2/models/m/infer",
        client="127.0.0.1",
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        at=1000.0,
        seconds=0.5,
        status=200,
        found={"model": "m", "stage": 2, "deadline_ms": 600.0, "deadline_met": True},
    )
    record.steps = (Timing(1, 4, 0.125, 0.25), Timing(2, 3, 0.125, 0.375))
    return record


def test_a_request_with_its_steps() -> None:
    *steps, request = spans(answered())
    assert (request.name, request.kind) == ("POST infer", SpanKind.SERVER)
    assert request.context is not None
    assert request.parent is not None
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert (request.start_time, request.end_time) == (1000 * SECOND, 1000 * SECOND + SECOND // 2)
    assert request.attributes is not None
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "url.path": "/v2/models/m/infer",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "anynest.model": "m",
        "anynest.stage": 2,
        "anynest.deadline_ms": 600.0,
        "anynest.deadline_met": True,
    }
    assert [step.name for step in steps] == ["stage 1", "stage 2"]
    for number, step in enumerate(steps):
        assert step.parent is not None
        assert step.parent.span_id == request.context.span_id
        assert step.start_time == 1000 * SECOND + (number + 1) * SECOND // 8
        assert step.end_time == step.start_time + SECOND // 8
    assert request.resource.attributes["service.name"] == "anynest"


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, StatusCode.UNSET), (404, StatusCode.UNSET), (503, StatusCode.ERROR)],
)
def test_the_server_s_faults_are_errors(status: int, code: StatusCode) -> None:
    record = answered()
    record.status = status
    assert spans(record)[-1].status.status_code is code


def test_grpc_without_a_parent() -> None:
    record = Record("grpc", "", "/inference.GRPCInferenceService/ModelInfer", "::1", {})
    record.status = "DEADLINE_EXCEEDED"
    (span,) = spans(record)
    assert span.name == "inference.GRPCInferenceService/ModelInfer"
    assert span.parent is None
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert span.status.status_code is StatusCode.ERROR


def test_a_malformed_parent_is_ignored() -> None:
    record = answered()
    record.headers = {"traceparent": "nonsense"}
    assert spans(record)[-1].parent is None
