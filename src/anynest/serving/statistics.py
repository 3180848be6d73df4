"""What was computed for each model, as the statistics extension of the protocol tells it.

A batch of stage 1 is one execution; later stages of it are further steps of the same execution.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Protocol

from .models import ServedModel


class Timed(Protocol):
    """An answer, as far as it is counted."""

    @property
    def elapsed(self) -> float:
        """Seconds since the request arrived."""


@dataclass
class Total:
    """How often something took place, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def describe(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass
class ModelStatistics:
    """Of one version of a model.

    Attributes:
        success: requests that were answered, from headers to answer.
        failures: requests that were refused, or accepted and not answered.
        steps: that were computed.
        by_rows: rows of a batch -> its steps.
        rows: that were answered.
        executions: batches of stage 1.
        last: when the last request was answered, in seconds since 1970.
    """

    success: Total = field(default_factory=Total)
    failures: int = 0
    steps: Total = field(default_factory=Total)
    by_rows: defaultdict[int, Total] = field(default_factory=lambda: defaultdict(Total))
    rows: int = 0
    executions: int = 0
    last: float = 0.0

    def describe(self, name: str, version: str) -> dict[str, Any]:
        """An entry of ``model_stats``; waiting is not measured apart from ``success``."""
        fail = Total(self.failures)
        batches = [
            {"batch_size": rows, "compute_infer": self.by_rows[rows].describe()}
            for rows in sorted(self.by_rows)
        ]
        return {
            "name": name,
            "version": version,
            "last_inference": round(self.last * 1000),
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.describe(),
                "fail": fail.describe(),
                "compute_infer": self.steps.describe(),
            },
            "batch_stats": batches,
        }


class Statistics:
    """An observer (see ``service.Observer``) that counts, for each version of each model."""

    def __init__(self) -> None:
        self._models: defaultdict[tuple[str, str], ModelStatistics]
        self._models = defaultdict(ModelStatistics)

    def of(self, model: ServedModel) -> ModelStatistics:
        """The counts of a model, which a reload does not reset."""
        return self._models[model.name, model.version]

    def received(self, model: ServedModel) -> None:
        """Counted when it ends."""

    def refused(self, model: ServedModel, reason: str) -> None:
        self.of(model).failures += 1

    def answered(self, model: ServedModel, answer: Timed, rows: int) -> None:
        counts = self.of(model)
        counts.success.add(answer.elapsed)
        counts.rows += rows
        counts.last = time.time()

    def failed(self, model: ServedModel, status: int) -> None:
        self.of(model).failures += 1

    def left(self, model: ServedModel) -> None:
        """Neither answered nor failed."""

    def step(self, model: ServedModel, stage: int, rows: int, seconds: float) -> None:
        counts = self.of(model)
        counts.executions += stage == 1
        counts.steps.add(seconds)
        counts.by_rows[rows].add(seconds)
