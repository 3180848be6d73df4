"""Measures the time that networks take to reach each of their stages.

All subjects are timed in turn, round after round, in another order each round, so that a machine
whose speed drifts favours none. In each round a subject runs once unmeasured, so that the caches
and the kernels' threads are its own, and then ``repeats`` times by the clock.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engines.checks import check_threads
from ..engines.open import open_session
from ..engines.session import BACKENDS, Evaluation, Session
from ..engines.verify import random_images
from ..nets import AnytimeNetwork, StageCost, create_model
from ..store.hardware import describe_environment, find_device
from .profile import Profile
from .times import ProfileError, StageLatency, Way, whole_number


def profile_network(
    network: AnytimeNetwork,
    *,
    image_size: int,
    export: Path | None = None,
    backends: Sequence[str] = ("onnxruntime",),
    threads: Sequence[int] = (1,),
    batch_sizes: Sequence[int] = (1,),
    device: str = "cpu",
    rounds: int = 40,
    plain: bool = True,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Measure every stage of a network in all combinations of options, in one interleaved run.

    Args:
        network: with weights or without; times do not depend on them.
        image_size: pixels per side.
        export: the folder of an export of the network, measured in its place (``onnxruntime``).
        backends: of ``onnxruntime`` (on the CPU) and ``torch``.
        threads: numbers of threads within one step.
        batch_sizes: numbers of images at once.
        device: where torch computes.
        rounds: of five runs each; 40 give 200 runs.
        plain: also measure the plain network of each stage's size.
        report: called with (turns done, turns in all); may raise, to stop.

    Raises:
        ProfileError: a number below 1, too many threads, an unknown backend, nothing to measure.
        ValueError: a device that is not available; the network has no registered name, so that its
            plain networks cannot be built.
    """
    image_size = whole_number("the image size", image_size)
    threads = _whole_numbers("threads", threads)
    batch_sizes = _whole_numbers("batch sizes", batch_sizes)
    try:
        check_threads(max(threads))
    except ValueError as error:
        raise ProfileError(str(error)) from error
    if not backends or not set(backends) <= set(BACKENDS):
        raise ProfileError(f"backends must be of {', '.join(BACKENDS)}, found {list(backends)}")
    device = str(find_device(device))
    costs = _numbered(network.cost(image_size))
    alone = list(plain_networks(network)) if plain else []
    with ExitStack() as stack:
        subjects = []
        for backend in backends:
            for net, stage in [(network, None), *((n, s) for s, n in enumerate(alone, 1))]:
                for count in threads:
                    source = export if export is not None and stage is None else net
                    place = device if backend == "torch" else "cpu"
                    session = open_session(source, backend=backend, threads=count, device=place)
                    stack.callback(session.close)
                    for size in batch_sizes:
                        way = (backend, place, count, size)
                        subjects.append(_subject(session, way, image_size, stage))
        rows = measure(subjects, rounds=rounds, report=report)
    together = {subject.way: list[StageLatency]() for subject in subjects}
    beside = {subject.way: list[StageLatency]() for subject in subjects}
    for subject, found in zip(subjects, rows, strict=True):
        (together if subject.plain is None else beside)[subject.way] += found
    return Profile(
        model=network.name,
        arguments=network.arguments,
        image_size=image_size,
        costs=costs,
        rows=tuple(row for way in together.values() for row in way),
        plain_costs=_numbered([net.cost(image_size)[-1] for net in alone]),
        plain=tuple(row for way in beside.values() for row in way),
        environment=describe_environment(torch.device(device)),
    )


def plain_networks(network: AnytimeNetwork) -> Iterator[AnytimeNetwork]:
    """The plain, un-nested network of each stage's size, from stage 1 (section 5.3)."""
    arguments: dict[str, Any] = {**network.arguments}
    arguments.pop("subnetwork", None)
    for stage in network.outputs:
        yield create_model(network.name, **{"independent": stage, **arguments}).eval()


def _whole_numbers(name: str, values: Sequence[int]) -> list[int]:
    if not len(values):
        raise ProfileError(f"{name} must be at least one whole number from 1, found none")
    return [whole_number(name, value) for value in values]


def _subject(session: Session, way: Way, image_size: int, stage: int | None) -> Subject:
    assert session.in_channels is not None
    images = random_images(way[3], session.in_channels, image_size, image_size)
    return Subject(session.begin, images.to(way[1]), way, stage)


def _numbered(costs: Sequence[StageCost]) -> tuple[StageCost, ...]:
    """Numbered from 1, also for one stage of a network."""
    return tuple(replace(cost, stage=number) for number, cost in enumerate(costs, 1))


# -- timing ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subject:
    """A network in one way to run it.

    Attributes:
        begin: starts an evaluation of images ``[B, C, H, W]``; its time counts.
        images: the input.
        way: backend, device, threads, batch size.
        plain: the stage whose size this plain network has; None for a network of several stages.
    """

    begin: Callable[[Tensor], Evaluation]
    images: Tensor
    way: Way
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

    def rows(self, subject: Subject) -> tuple[StageLatency, ...]:
        first = 1 if subject.plain is None else subject.plain
        return tuple(
            StageLatency.of(stage, subject.way, reached, steps)
            for stage, (reached, steps) in enumerate(
                zip(self.reached, self.steps, strict=True), first
            )
        )


def measure(
    subjects: Sequence[Subject],
    *,
    rounds: int = 40,
    repeats: int = 5,
    report: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[StageLatency, ...]]:
    """Time every subject ``rounds * repeats`` times.

    Args:
        subjects: what to time.
        rounds: turns of each subject.
        repeats: timed runs per turn.
        report: called with (turns done, turns in all) after every turn; may raise, to stop.
        clock: monotonic, in seconds.

    Returns:
        For each subject, a row per stage.

    Raises:
        ProfileError: fewer than one round or repeat.
    """
    rounds, repeats = whole_number("rounds", rounds), whole_number("repeats", repeats)
    runs = [_Runs() for _ in subjects]
    threads = torch.get_num_threads()
    try:
        for number in range(rounds):
            for turn in range(len(subjects)):
                index = (number + turn) % len(subjects)
                subject = subjects[index]
                torch.set_num_threads(subject.way[2])
                time_once(subject, clock)
                for _ in range(repeats):
                    runs[index].add(time_once(subject, clock))
                report(number * len(subjects) + turn + 1, rounds * len(subjects))
    finally:
        torch.set_num_threads(threads)
    return [found.rows(subject) for subject, found in zip(subjects, runs, strict=True)]


def time_once(subject: Subject, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Run all stages once; the seconds from the call to each stage's logits."""
    synchronize = _synchronizer(subject.way[1])
    times = []
    synchronize()
    start = clock()
    evaluation = subject.begin(subject.images)
    try:
        while evaluation.stage < evaluation.num_stages:
            if evaluation.step() is not None:
                synchronize()
                times.append(clock() - start)
    finally:
        evaluation.close()
    return times


def _synchronizer(device: str) -> Callable[[], None]:
    """Waits until the device has finished all queued work."""
    kind = torch.device(device).type
    if kind == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if kind == "mps" else lambda: None
