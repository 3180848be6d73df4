"""Prometheus metrics of a server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..models import ServedModel
from ..requests.answer import Answer
from ..service import Service
from .records import outcome_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# 1-2-5 from 1 ms to 5 s: deadlines lie among these
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SHORT_SECONDS = (0.0001, 0.0002, 0.0005, *SECONDS[:9])  # of steps, and of lateness
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counts what the service says, and reads its state when it is asked. One of its observers.

    Every name begins with ``anynest_``; ``docs/serve.md`` has the table.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = _cached(
            Counter(
                "anynest_requests",
                "Requests for a model, by how they ended; a reason is given for the refused ones.",
                ["model", "outcome", "reason"],
                registry=registry,
            )
        )
        self._stages = _cached(
            Counter(
                "anynest_answers",
                "Answered requests, by the stage of the answer.",
                ["model", "stage"],
                registry=registry,
            )
        )
        self._deadlines = _cached(
            Counter(
                "anynest_deadlines",
                "Answered requests, by whether the answer was ready to be sent by the deadline.",
                ["model", "met"],
                registry=registry,
            )
        )
        self._latency = _cached(
            Histogram(
                "anynest_request_seconds",
                "From the arrival of an answered request's headers to its answer.",
                ["model"],
                buckets=SECONDS,
                registry=registry,
            )
        )
        self._overshoot = _cached(
            Histogram(
                "anynest_overshoot_seconds",
                "By how much answers were ready to be sent after their deadline; 0 if before.",
                ["model"],
                buckets=SHORT_SECONDS,
                registry=registry,
            )
        )
        self._steps = _cached(
            Histogram(
                "anynest_step_seconds",
                "Computation of one stage of one batch.",
                ["model", "stage"],
                buckets=SHORT_SECONDS,
                registry=registry,
            )
        )
        self._rows = _cached(
            Histogram(
                "anynest_batch_rows",
                "Rows that were computed together.",
                ["model", "stage"],
                buckets=ROWS,
                registry=registry,
            )
        )

    def watch(self, service: Service) -> None:
        """Count a service's requests, and read its state whenever the metrics are read."""
        service.observers.append(self)
        self.registry.register(_State(service))

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    # -- the service's observer -------------------------------------------------------------------
    def received(self, model: ServedModel) -> None:
        """A request was accepted: it is counted when it ends."""

    def refused(self, model: ServedModel, reason: str) -> None:
        """Count a refused request."""
        self._requests(model.name, "refused", reason).inc()

    def answered(self, model: ServedModel, answer: Answer, rows: int) -> None:
        """Count an answered request."""
        name = model.name
        self._requests(name, "answered", "").inc()
        self._stages(name, str(answer.stage)).inc()
        self._deadlines(name, "yes" if answer.deadline_met else "no").inc()
        self._latency(name).observe(answer.elapsed)
        self._overshoot(name).observe(max(0.0, answer.elapsed - answer.deadline))

    def failed(self, model: ServedModel, status: int) -> None:
        """Count an accepted request without an answer."""
        self._requests(model.name, outcome_of(status), "").inc()

    def left(self, model: ServedModel) -> None:
        """Count a request whose client has gone."""
        self._requests(model.name, "left", "").inc()

    def step(self, model: ServedModel, stage: int, rows: int, seconds: float) -> None:
        """Count a step."""
        self._steps(model.name, str(stage)).observe(seconds)
        self._rows(model.name, str(stage)).observe(rows)


def _cached(metric: Any) -> Callable[..., Any]:
    """A metric's children by their labels, without the checks of ``labels`` each time."""
    return cache(metric.labels)


def metrics_route(metrics: Metrics) -> Route:
    """The endpoint that Prometheus reads."""

    async def answer(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    return Route("/metrics", answer, methods=["GET"])


class _State(Collector):
    """The gauges, read from a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """The gauges as they are now."""
        service = self._service
        load = service.load()
        for name, text, value in (
            ("ready", "1 if requests are accepted.", float(service.ready)),
            ("draining", "1 if the server stops.", float(service.draining)),
            ("queue_rows", "Rows that wait for their first answer.", load.waiting_rows),
            ("held_rows", "Answered rows that may get a later stage.", load.held_rows),
            ("in_flight", "Accepted requests without a response.", service.in_flight),
            ("bytes_in_flight", "Bytes of their bodies.", service.bytes_in_flight),
            (
                "mandatory_utilisation",
                "Share of the time that stage 1 takes: what cannot be shed.",
                load.mandatory,
            ),
            (
                "wakeup_lag_seconds",
                "By how much answers are sent before deadlines: the event loop's lag and the network's.",
                service.reply,
            ),
        ):
            yield GaugeMetricFamily(f"anynest_{name}", text, value)
