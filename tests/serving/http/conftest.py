"""A served model whose stages a test can hold back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from torch import Tensor

from anynest.serving.connections import limited
from anynest.serving.estimates import StepTimes
from anynest.serving.http import unread
from anynest.serving.http.app import create_app
from anynest.serving.models import ServedModel
from anynest.serving.repository import Repository
from anynest.serving.service import Service
from anynest.serving.settings import Settings
from anynest.store import WeightsInfo

PATIENCE = 60.0  # seconds; a test that waits so long has failed
TIME = {"timeout": int(1e6 * PATIENCE)}  # parameters of a deadline that does not matter
STAGES, CLASSES, SIZE = 3, 4, 8
MEAN, STD = (0.5, 0.25, 0.5), (0.5, 0.5, 0.25)
LABELS = ("cat", "dog", "émeu", "owl")


class HeldSession:
    """Three stages; the logits of an image are its first pixels times the stage, one per channel.

    A stage whose gate is closed is computed when it opens. ``error`` is raised by every step.
    """

    backend = "torch"
    num_stages, num_classes, in_channels = STAGES, CLASSES, 3
    input_names = ("x",)
    divides = False

    def __init__(self) -> None:
        self.gates = [threading.Event() for _ in range(STAGES)]
        self.begun = [threading.Event() for _ in range(STAGES)]
        self.error: Exception | None = None
        self.images = 0  # that stage 1 was computed for, after ``count``
        for gate in self.gates:
            gate.set()

    def begin(self, inputs: Mapping[str, Tensor]) -> HeldEvaluation:
        return HeldEvaluation(self, inputs["x"].clone())

    def close(self) -> None:
        pass


class HeldEvaluation:
    num_stages = STAGES

    def __init__(self, session: HeldSession, images: Tensor) -> None:
        self.session, self.images, self.stage = session, images, 0

    def step(self) -> Tensor:
        session = self.session
        if session.error is not None:
            raise session.error
        session.begun[self.stage].set()
        assert session.gates[self.stage].wait(PATIENCE)
        self.stage += 1
        if self.stage == 1:
            session.images += len(self.images)
        return expected(self.images, self.stage)

    def compact(self, indices: Tensor) -> None:
        raise AssertionError("this session does not divide batches")

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


def expected(images: Tensor, stage: int) -> Tensor:
    """The logits of a stage."""
    logits = torch.zeros(len(images), CLASSES)
    logits[:, :3] = stage * images[:, :, 0, 0]
    return logits


@dataclass
class Served:
    """A running service, its application, and the session behind it."""

    service: Service
    app: Any
    session: HeldSession

    def assert_baseline(self) -> None:
        """No request, byte or client is left."""
        assert self.service.in_flight == 0
        assert self.service.bytes_in_flight == 0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what other tasks and threads do."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def running(extra_routes: Sequence[Any] = (), **settings: Any) -> AsyncIterator[Served]:
    """A service of a ``HeldSession``; afterwards nothing is left in it."""
    session = HeldSession()
    info = WeightsInfo("tiny", {}, LABELS, MEAN, STD, SIZE, "none", "0", "whole")

    def load() -> ServedModel:
        model = ServedModel("tiny", "1", session, {"x": torch.zeros(1, 3, SIZE, SIZE)}, info)
        model.times = StepTimes([[1e-6] * 2] * STAGES, [1, 4])  # no warm-up
        model.output_shape = (CLASSES,)
        return model

    repository = Repository()
    repository.add(load, "tiny")
    service = Service(repository, Settings(**{"max_batch": 4, **settings}))
    await service.start()
    for event in session.begun:
        event.clear()
    session.images = 0
    served = Served(service, create_app(service, extra_routes=extra_routes), session)
    try:
        yield served
        served.assert_baseline()
    finally:
        session.error = None
        for gate in session.gates:
            gate.set()
        await service.stop(PATIENCE)


@asynccontextmanager
async def listening(served: Served, *, own: bool = False) -> AsyncIterator[int]:
    """The port of a server in this event loop, which ends with the block.

    Args:
        served: by it.
        own: whether its connections are those of ``anynest serve``, not uvicorn's.
    """
    http: Any = limited(header_seconds=60.0, max_connections=1000) if own else "auto"
    config = uvicorn.Config(
        served.app, port=0, http=http, log_level="critical", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    try:
        await served.until(lambda: server.started or task.done())
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


Scenario = Callable[[Served], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _no_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "LINGER", 0.01)


@pytest.fixture
def play() -> Iterator[Callable[..., None]]:
    """Run a coroutine function with a running service, whose settings are given."""

    def run(scenario: Scenario, patience: float = PATIENCE, **options: Any) -> None:
        async def main() -> None:
            async with running(**options) as served:
                before = asyncio.all_tasks()
                async with asyncio.timeout(patience):
                    await scenario(served)
                await served.until(lambda: asyncio.all_tasks() <= before)

        asyncio.run(main())

    return run


def images(rows: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    """Normalised images."""
    drawn = np.random.default_rng(seed).standard_normal((rows, 3, SIZE, SIZE))
    return drawn.astype(np.float32)


def logits(x: np.ndarray[Any, Any], stage: int = STAGES) -> np.ndarray[Any, Any]:
    """What a stage gives for images."""
    found: np.ndarray[Any, Any] = expected(torch.from_numpy(np.array(x)), stage).numpy()
    return found
