"""How long a network takes to reach each of its stages.

Everything that is to be compared is timed in turn, round after round, in another order each round: a
machine whose speed drifts favours none. In each round a subject runs once unmeasured, so that caches
and the kernels' threads are its own, and then ``repeats`` times by the clock.

Legend: B batch, C channels, H height, W width.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .errors import ProfileError
from .times import StageLatency


class Evaluation(Protocol):
    """One batch on its way through a network, as a session of ``anynest.runtime`` begins it."""

    @property
    def stage(self) -> int:
        """The newest finished stage, 0 before the first."""

    @property
    def num_stages(self) -> int:
        """The last stage there is."""

    def step(self) -> Tensor | None:
        """Compute the next node: the logits of a stage if it is finished now, else None."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Subject:
    """A network in one way to run it.

    Attributes:
        begin: starts an evaluation of images [B, C, H, W]; its time counts.
        images: what it is timed on.
        way: backend, device, threads, batch size.
        plain: the stage whose size this plain network has, None for a network of several stages.
    """

    begin: Callable[[Tensor], Evaluation]
    images: Tensor
    way: tuple[str, str, int, int]
    plain: int | None = None


@dataclass
class _Runs:
    """Per stage, every run's seconds from the call, and from the stage before."""

    reached: list[list[float]] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)

    def add(self, times: list[float]) -> None:
        if not self.reached:
            self.reached, self.steps = [[] for _ in times], [[] for _ in times]
        before = 0.0
        for index, seconds in enumerate(times):
            self.reached[index].append(seconds)
            self.steps[index].append(seconds - before)
            before = seconds


def measure(
    subjects: Sequence[Subject],
    *,
    rounds: int = 40,
    repeats: int = 5,
    report: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[StageLatency, ...]]:
    """Time every subject ``rounds * repeats`` times; for each its rows, one a stage.

    Args:
        report: called with (turns done, turns in all) after every turn; may raise, to stop.
        clock: seconds that never go back.

    Raises:
        ProfileError: fewer than one round or repeat.
    """
    for name, value in (("rounds", rounds), ("repeats", repeats)):
        if type(value) is not int or value < 1:
            raise ProfileError(f"{name} must be a whole number from 1, found {value!r}")
    runs = [_Runs() for _ in subjects]
    threads = torch.get_num_threads()
    try:
        for number in range(rounds):
            for turn in range(len(subjects)):
                index = (number + turn) % len(subjects)
                subject = subjects[index]
                torch.set_num_threads(subject.way[2])
                once(subject, clock)
                for _ in range(repeats):
                    runs[index].add(once(subject, clock))
                report(number * len(subjects) + turn + 1, rounds * len(subjects))
    finally:
        torch.set_num_threads(threads)
    return [_rows(*pair) for pair in zip(subjects, runs, strict=True)]


def once(subject: Subject, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Run through all stages once: the seconds from the call to each stage's logits."""
    wait = _waiter(subject.way[1])
    times = []
    wait()
    began = clock()
    evaluation = subject.begin(subject.images)
    try:
        while evaluation.stage < evaluation.num_stages:
            if evaluation.step() is not None:
                wait()
                times.append(clock() - began)
    finally:
        evaluation.close()
    return times


def _waiter(device: str) -> Callable[[], None]:
    """Waits until the device has done all that it was given."""
    kind = torch.device(device).type
    if kind == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if kind == "mps" else lambda: None


def _rows(subject: Subject, runs: _Runs) -> tuple[StageLatency, ...]:
    pairs = zip(runs.reached, runs.steps, strict=True)
    first = 1 if subject.plain is None else subject.plain
    return tuple(
        StageLatency.of(stage, subject.way, reached, steps)
        for stage, (reached, steps) in enumerate(pairs, first)
    )
