"""A session whose steps are controlled by the test: they block, raise or count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

PATIENCE = 20.0  # seconds; a test that waits so long has failed
Hook = Callable[[int, int], None]


class FakeSession:
    """Stages of ``steps`` nodes. The logits of an image are its first pixel times the stage for
    class 0, and 0 for the other classes, so brighter images are classified with more confidence.

    ``on_step(stage, node)`` runs in every step, numbered from 1; ``log`` has (image, stage, node).
    """

    backend = "torch"
    in_channels = 1

    def __init__(
        self, stages: int = 3, steps: int = 2, classes: int = 4, on_step: Hook | None = None
    ):
        self.num_stages, self.steps, self.num_classes = stages, steps, classes
        self.on_step = on_step or (lambda stage, node: None)
        self.log: list[tuple[tuple[float, ...], int, int]] = []
        self.open: set[FakeEvaluation] = set()
        self.cancels = 0
        self.closed = False
        self.threads: set[str] = set()

    def begin(self, x: Tensor) -> FakeEvaluation:
        if x.shape[-1] == 13:
            raise ValueError("images of 13 pixels bring bad luck")
        return FakeEvaluation(self, x)

    def close(self) -> None:
        self.closed = True


class FakeEvaluation:
    def __init__(self, session: FakeSession, x: Tensor):
        self.session, self.values = session, x[:, 0, 0, 0].clone()
        self.stage = self.node = 0
        self.num_stages = session.num_stages
        session.open.add(self)

    def step(self) -> Tensor | None:
        session = self.session
        assert self in session.open, "a step of a closed evaluation"
        assert self.stage < session.num_stages, "a step after the last stage"
        session.threads.add(threading.current_thread().name)
        self.node += 1
        session.log.append((tuple(self.values.tolist()), self.stage + 1, self.node))
        session.on_step(self.stage + 1, self.node)
        if self.node < session.steps:
            return None
        self.stage, self.node = self.stage + 1, 0
        logits = torch.zeros(len(self.values), session.num_classes)
        logits[:, 0] = self.values * self.stage
        return logits

    def compact(self, indices: Tensor) -> None:
        assert self.node == 0, "compacted in the middle of a stage"
        assert indices.dtype == torch.int64
        assert len(indices)
        self.values = self.values[indices]

    def cancel(self) -> None:
        self.session.cancels += 1

    def close(self) -> None:
        self.session.open.discard(self)


class Gate:
    """Blocks the step (stage, node) until it is opened."""

    def __init__(self, stage: int, node: int = 1) -> None:
        self.place = (stage, node)
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, stage: int, node: int) -> None:
        if (stage, node) == self.place and not self.opened.is_set():
            self.reached.set()
            assert self.opened.wait(PATIENCE)


@pytest.fixture
def gates() -> Iterator[Callable[..., Gate]]:
    """Creates gates, and opens them all at teardown."""
    made: list[Gate] = []

    def make(stage: int, node: int = 1) -> Gate:
        made.append(Gate(stage, node))
        return made[-1]

    yield make
    for gate in made:
        gate.opened.set()


def settle(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.001)


@pytest.fixture
def make_session() -> type[FakeSession]:
    return FakeSession


def picture(value: float) -> Tensor:
    """One image ``[1, 2, 2]`` filled with the value."""
    return torch.full((1, 2, 2), value)


@pytest.fixture
def make_image() -> Callable[[float], Tensor]:
    return picture
