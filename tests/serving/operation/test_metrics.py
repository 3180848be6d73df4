"""Metrics: what the observer hears is counted, and the gauges are the service's state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families

from anynest.serving.telemetry.metrics import SECONDS, Metrics

MODEL: Any = SimpleNamespace(name="m", version="1")


def answer(stage: int, elapsed: float, deadline: float) -> Any:
    return SimpleNamespace(
        stage=stage, elapsed=elapsed, deadline=deadline, deadline_met=elapsed <= deadline
    )


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, label values by the labels' names...) -> value."""
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_counts() -> None:
    metrics = Metrics()
    metrics.answered(MODEL, answer(3, 0.004, 0.050), 1)
    metrics.answered(MODEL, answer(1, 0.053, 0.050), 1)
    metrics.refused(MODEL, "late")
    metrics.failed(MODEL, 504)
    metrics.failed(MODEL, 500)
    metrics.failed(MODEL, 400)
    metrics.left(MODEL)
    metrics.step(MODEL, 2, 7, 0.003)
    found = values(metrics)
    by_outcome = {
        key[2:]: value for key, value in found.items() if key[0] == "anynest_requests_total"
    }
    assert by_outcome == {  # outcome, reason
        ("answered", ""): 2,
        ("refused", "late"): 1,
        ("timed_out", ""): 1,
        ("failed", ""): 1,
        ("invalid", ""): 1,
        ("left", ""): 1,
    }
    assert found["anynest_answers_total", "m", "1"] == 1
    assert found["anynest_answers_total", "m", "3"] == 1
    assert found["anynest_deadlines_total", "yes", "m"] == 1
    assert found["anynest_deadlines_total", "no", "m"] == 1
    latency = {
        key: value for key, value in found.items() if key[0] == "anynest_request_seconds_bucket"
    }
    assert latency["anynest_request_seconds_bucket", "0.002", "m"] == 0
    assert latency["anynest_request_seconds_bucket", "0.005", "m"] == 1
    assert latency["anynest_request_seconds_bucket", "0.1", "m"] == 2
    assert len(latency) == len(SECONDS) + 1
    assert found["anynest_overshoot_seconds_sum", "m"] == pytest.approx(0.003)
    assert found["anynest_overshoot_seconds_bucket", "0.0001", "m"] == 1
    assert found["anynest_batch_rows_bucket", "4.0", "m", "2"] == 0
    assert found["anynest_batch_rows_bucket", "8.0", "m", "2"] == 1
    assert found["anynest_step_seconds_sum", "m", "2"] == pytest.approx(0.003)


def test_gauges_are_read_when_they_are_asked_for() -> None:
    metrics = Metrics()
    load = SimpleNamespace(waiting_rows=3, held_rows=5, mandatory=0.25)
    service: Any = SimpleNamespace(
        observers=[],
        ready=True,
        draining=False,
        in_flight=9,
        bytes_in_flight=1000,
        reply=0.002,
        load=lambda: load,
    )
    metrics.watch(service)
    assert service.observers == [metrics]
    expected = {
        "ready": 1,
        "draining": 0,
        "queue_rows": 3,
        "held_rows": 5,
        "in_flight": 9,
        "bytes_in_flight": 1000,
        "mandatory_utilisation": 0.25,
        "wakeup_lag_seconds": 0.002,
    }
    found = values(metrics)
    assert {name: found[(f"anynest_{name}",)] for name in expected} == expected
    service.ready, load.waiting_rows = False, 0
    found = values(metrics)
    assert (found["anynest_ready",], found["anynest_queue_rows",]) == (0, 0)


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.left(MODEL)
    assert ("anynest_requests_total", "m", "left", "") in values(one)
    assert not any(key[0] == "anynest_requests_total" for key in values(other))
