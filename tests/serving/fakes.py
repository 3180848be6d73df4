"""A session whose steps the test controls: they block, raise or are recorded. No time passes."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anynest.serving.estimates import StepTimes
from anynest.serving.models import ServedModel
from anynest.serving.protocol.inference import InferRequest
from anynest.serving.repository import Repository
from anynest.serving.service import Service
from anynest.serving.settings import Settings

PATIENCE = 60.0  # seconds; a test that waits so long has failed
Hook = Callable[[int, tuple[float, ...]], None]


class FakeSession:
    """Inputs ``x`` ``[B, 1]``. The logits of a row are its value times the stage, then zeros.

    ``on_step(stage, values)`` runs in every step; ``log`` has what was computed.
    """

    backend = "torch"
    in_channels = None
    num_classes = 4
    input_names = ("x",)
    divides = True

    def __init__(self, stages: int = 3, on_step: Hook | None = None) -> None:
        self.num_stages = stages
        self.on_step: Hook = on_step or (lambda stage, values: None)
        self.log: list[tuple[int, tuple[float, ...]]] = []
        self.open: set[FakeEvaluation] = set()
        self.closed = False

    def begin(self, x: dict[str, Tensor]) -> FakeEvaluation:
        assert not self.closed
        return FakeEvaluation(self, x["x"][:, 0].clone(), 0)

    def join(
        self, evaluations: Sequence[FakeEvaluation], rows: Sequence[Tensor | None] | None = None
    ) -> FakeEvaluation:
        chosen = rows or [None] * len(evaluations)
        values = [
            one.values if indices is None else one.values[indices]
            for one, indices in zip(evaluations, chosen, strict=True)
        ]
        assert len({one.stage for one in evaluations}) == 1
        return FakeEvaluation(self, torch.cat(values), evaluations[0].stage)

    def close(self) -> None:
        self.closed = True

    def served(self, value: float) -> list[int]:
        """The stages that were computed for the row of this value."""
        return [stage for stage, values in self.log if value in values]


class FakeEvaluation:
    def __init__(self, session: FakeSession, values: Tensor, stage: int) -> None:
        self.session, self.values, self.stage = session, values, stage
        self.num_stages = session.num_stages
        session.open.add(self)

    def step(self) -> Tensor:
        assert self in self.session.open, "a step of a closed evaluation"
        assert self.stage < self.num_stages
        values = tuple(self.values.tolist())
        self.session.log.append((self.stage + 1, values))
        self.session.on_step(self.stage + 1, values)
        self.stage += 1
        logits = torch.zeros(len(values), 4)
        logits[:, 0] = self.values * self.stage
        return logits

    def compact(self, indices: Tensor) -> None:
        self.values = self.values[indices]

    def cancel(self) -> None:
        raise AssertionError("not used by the server")

    def close(self) -> None:
        self.session.open.discard(self)


class Gate:
    """Holds the compute thread at the steps of a stage, until it is opened."""

    def __init__(self, stage: int) -> None:
        self.stage = stage
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, stage: int, values: tuple[float, ...]) -> None:
        if stage == self.stage and any(values):  # not in the probe
            self.reached.set()
            assert self.opened.wait(PATIENCE)


def fake_model(session: FakeSession, max_batch: int = 8, name: str = "fake") -> ServedModel:
    """A model that is warm: its steps are expected to take no time worth mentioning."""
    model = ServedModel(name, "1", session, {"x": torch.zeros(1, 1)})
    model.times = StepTimes([[1e-6] * 2] * session.num_stages, [1, max_batch])
    return model


@asynccontextmanager
async def serving(*models: Any, **options: Any) -> AsyncIterator[Service]:
    """A started service that ends with the block. Models are fakes, made by functions or warmed."""
    observer = options.pop("observer", None)
    repository = Repository()
    for model in models:
        source = model if callable(model) else lambda model=model: model
        repository.add(source, "fake" if callable(model) else model.name)
    service = Service(repository, Settings(**options), observer=observer)
    await service.start()
    try:
        yield service
    finally:
        await service.stop(0.0)


def request(*values: float, **parameters: Any) -> InferRequest:
    """One row for each value."""
    array = np.array(values, np.float32).reshape(-1, 1)
    return InferRequest("", {"x": array}, {}, False, parameters)
