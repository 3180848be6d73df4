"""The measured table predicted in virtual time, and plans for many replicas.

The scheduler is the server's own; its estimates are the 95th percentiles of the measured step
times, the steps take the medians, and the event loop's work per request is what the calibration of
``serve.py`` measured. The arrivals are those of the measurement, as is the lag by which the server
answers before deadlines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from _serve_arrivals import arrival_times
from _serve_report import FIRST, OURS, Record, of_kind
from _simulation import Arrival, Outcome, Overheads, simulate

from anynest.serving.estimates import Gains, StepTimes
from anynest.serving.scheduler import Scheduler

REPLICAS = (1, 3, 10, 30, 100, 300, 1000)
FRONTS = ("round-robin", "least-loaded")
PLANNED = (0.6, 1.5)  # C of each replica
REQUESTS = 60_000  # of each plan, or as many as 50 of each replica are
DEADLINE, REPLY = 0.025, 0.001
COMPARED = ("in_time", "mean_stage", "refused", "accuracy")


def result(outcomes: Sequence[Outcome], right: Sequence[str]) -> dict[str, float]:
    """The numbers of the measured table; a late answer is wrong."""
    count = len(outcomes)
    in_time = [outcome for outcome in outcomes if outcome.in_time]
    correct = sum(right[one.stage - 1][one.number % len(right[0])] == "1" for one in in_time)
    return {
        "in_time": len(in_time) / count,
        "mean_stage": sum(one.stage for one in in_time) / max(1, len(in_time)),
        "refused": sum(not outcome.accepted for outcome in outcomes) / count,
        "accuracy": correct / count,
    }


class Predictor:
    """Simulates servers with the step times and overheads of some records."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.facts = of_kind(records, "facts")[-1]
        found = of_kind(records, "overheads")[-1]
        self.overheads = Overheads(
            *(found[key] for key in ("transit", "receive", "answer", "step"))
        )

    def predict(
        self,
        arrivals: Sequence[Arrival],
        *,
        first: bool = False,
        depth: int | None = None,
        reply: float = REPLY,
        **more: Any,
    ) -> dict[str, float]:
        """Of this server; of *first stage first*, or of the static network of a stage."""
        facts = self.facts
        median, high, batches = facts["seconds"], facts["high"], facts["batches"]
        right, confidence = facts["right"], facts["confidence"]
        gains = Gains.of_errors([1 - accuracy for accuracy in facts["accuracy"]])
        if depth is not None:
            median, high = ([_sum(table[:depth])] for table in (median, high))
            right, confidence = right[depth - 1 : depth], confidence[depth - 1 : depth]
            gains = Gains.uniform(1)

        def scheduler() -> Scheduler:
            return Scheduler(StepTimes(high, batches), gains, first_stage_first=first)

        outcomes, _ = simulate(
            arrivals,
            scheduler,
            reply=reply,
            adapt=True,
            real=StepTimes(median, batches),
            overheads=self.overheads,
            confidences=confidence,
            **more,
        )
        found = result(outcomes, right)
        if depth is not None:
            found["mean_stage"] = float(depth) if found["in_time"] else 0.0
        return found


def _sum(table: Sequence[Sequence[float]]) -> list[float]:
    """The times of all stages together."""
    return [sum(column) for column in zip(*table, strict=True)]


def predictions(records: Sequence[Record], seed: int) -> list[Record]:
    """Every measured run of this server and its policies, predicted."""
    predictor, found = Predictor(records), []
    for record in of_kind(records, "load"):
        if record.get("tuned"):
            continue
        server = record["server"]
        times = arrival_times(record["arrivals"], record["rate"], record["seconds"], seed)
        arrivals = [Arrival(at, record["deadline"]) for at in times]
        depth = int(server.split()[-1]) if server.startswith("static") else None
        assert server in (OURS, FIRST) or depth is not None
        predicted = predictor.predict(
            arrivals, first=server == FIRST, depth=depth, reply=record.get("reply") or REPLY
        )
        measured = {key: record[key] for key in COMPARED}
        found.append(
            {
                "kind": "predicted",
                "server": server,
                **{key: record[key] for key in ("arrivals", "load", "deadline")},
                "predicted": predicted,
                "measured": measured,
                "error": error(predicted, measured),
            }
        )
    return found


def error(predicted: dict[str, float], measured: dict[str, float]) -> float:
    """The largest relative difference; of what is refused, the difference of the shares."""
    return max(
        abs(predicted[key] - measured[key])
        / (1.0 if key == "refused" else max(measured[key], 1e-9))
        for key in COMPARED
    )


def plans(
    records: Sequence[Record], replicas: Sequence[int], report: Callable[[Record], None]
) -> None:
    """In time, depth and refusals of 1 to 1,000 replicas behind each front, per load of a replica."""
    predictor = Predictor(records)
    lags = [r["reply"] for r in of_kind(records, "load") if r["server"] == OURS and r.get("reply")]
    reply = statistics.median(lags) if lags else REPLY
    for load in PLANNED:
        for count in replicas:
            rate = load * predictor.facts["capacity"] * count
            requests = max(REQUESTS, 50 * count)
            times = arrival_times("poisson", rate, requests / rate)
            arrivals = [Arrival(at, DEADLINE) for at in times]
            for front in FRONTS:
                found = predictor.predict(arrivals, reply=reply, replicas=count, front=front)
                report({"kind": "plan", "replicas": count, "front": front, "load": load, **found})
