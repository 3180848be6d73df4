"""Measures the time that networks take to reach each of their stages.

All subjects are timed in turn, round after round, in another order each round, so that a machine
whose speed drifts favours none. In each round a subject runs once unmeasured, so that the caches
and the kernels' threads are its own, and then ``repeats`` times by the clock.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engines.checks import check_threads
from ..engines.inputs import Inputs, InputSpec
from ..engines.model_source import Network, resolve
from ..engines.open import choose_backend, open_session
from ..engines.session import BACKENDS, Evaluation
from ..engines.verify import random_images
from ..nets import AnytimeNetwork, create_model
from ..nets.registry import name_of, origin_of
from ..store.hardware import describe_environment, find_device
from .costs import stage_costs
from .input_size import InputSize
from .profile import Profile
from .times import ProfileError, StageLatency, Way, whole_number


def profile_network(
    network: Network,
    *,
    image_size: int | None = None,
    example: Any = None,
    export: Path | None = None,
    backends: Sequence[str] | None = None,
    threads: Sequence[int] = (1,),
    batch_sizes: Sequence[int] = (1,),
    device: str = "cpu",
    rounds: int = 40,
    plain: bool = True,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Measure every stage of a network in all combinations of options, in one interleaved run.

    Args:
        network: with weights or without; times do not depend on them. Any module that satisfies
            :class:`~anynest.nets.Staged`.
        image_size: pixels per side, for a network of images.
        example: inputs, for any network: a tensor, a tuple of tensors in the network's order, or a
            dict of named tensors, with the batch as dimension 0. Its samples are repeated for
            larger batches.
        export: the folder of an export of the network, measured in its place (``onnxruntime``).
        backends: of ``onnxruntime`` (on the CPU) and ``torch``; None takes the one that
            ``open_session`` would take.
        threads: numbers of threads within one step.
        batch_sizes: numbers of samples at once.
        device: where torch computes.
        rounds: of five runs each; 40 give 200 runs.
        plain: also measure the plain network of each stage's size, where the network is one of the
            paper's.
        report: called with (turns done, turns in all); may raise, to stop.

    Raises:
        ProfileError: a number below 1, too many threads, an unknown backend, nothing to measure,
            or not exactly one of ``image_size`` and ``example``.
        TypeError: a network that lacks a method of ``Staged``.
        ValueError: a device that is not available; an example that does not fit the network; a
            nested network has no registered name, so that its plain networks cannot be built.
    """
    threads = _whole_numbers("threads", threads)
    batch_sizes = _whole_numbers("batch sizes", batch_sizes)
    try:
        check_threads(max(threads))
    except ValueError as error:
        raise ProfileError(str(error)) from error
    device = str(find_device(device))
    source = resolve(network)
    network = source.require_network()
    chosen = (choose_backend(source, None, device)[0],) if backends is None else tuple(backends)
    if not chosen or not set(chosen) <= set(BACKENDS):
        raise ProfileError(f"backends must be of {', '.join(BACKENDS)}, found {list(chosen)}")
    inputs = _example(network, image_size, example)
    costs = stage_costs(network, inputs)
    alone = list(plain_networks(network)) if plain and isinstance(network, AnytimeNetwork) else []
    with ExitStack() as stack:
        subjects = []
        for backend in chosen:
            for net, stage in [(network, None), *((n, s) for s, n in enumerate(alone, 1))]:
                for count in threads:
                    opened = export if export is not None and stage is None else net
                    place = device if backend == "torch" else "cpu"
                    session = open_session(opened, backend=backend, threads=count, device=place)
                    stack.callback(session.close)
                    for size in batch_sizes:
                        way = (backend, place, count, size)
                        batch = _repeated(inputs, size, place)
                        subjects.append(Subject(session.begin, batch, way, stage))
        rows = measure(subjects, rounds=rounds, report=report)
    together = {subject.way: list[StageLatency]() for subject in subjects}
    beside = {subject.way: list[StageLatency]() for subject in subjects}
    for subject, found in zip(subjects, rows, strict=True):
        (together if subject.plain is None else beside)[subject.way] += found
    side = image_size
    if side is None and InputSpec.of(network).channels is not None:
        height, width = next(iter(inputs.values())).shape[2:]
        side = height if height == width else None
    origin = origin_of(network)
    return Profile(
        model=name_of(network),
        arguments=origin.arguments if origin is not None else {},
        image_size=side,
        costs=costs,
        rows=tuple(row for way in together.values() for row in way),
        plain_costs=tuple(
            replace(stage_costs(net, inputs)[-1], stage=stage) for stage, net in enumerate(alone, 1)
        ),
        plain=tuple(row for way in beside.values() for row in way),
        environment=describe_environment(torch.device(device)),
        inputs=None if side is not None else InputSize.of(inputs),
    )


def plain_networks(network: AnytimeNetwork) -> Iterator[AnytimeNetwork]:
    """The plain, un-nested network of each stage's size, from stage 1 (section 5.3)."""
    arguments: dict[str, Any] = {**network.arguments}
    arguments.pop("subnetwork", None)
    for stage in network.outputs:
        yield create_model(network.name, **{"independent": stage, **arguments}).eval()


def _example(network: Network, image_size: int | None, example: Any) -> dict[str, Tensor]:
    """The inputs by name, in order; exactly one of the two is given."""
    if (image_size is None) == (example is None):
        raise ProfileError(
            "profile_network needs exactly one of image_size= and example=, found "
            f"{'none' if example is None else 'both'}"
        )
    spec = InputSpec.of(network)
    if image_size is not None:
        image_size = whole_number("the image size", image_size)
        if spec.channels is None:
            raise ProfileError(
                f"image_size is for networks with in_channels, found {type(network).__name__} "
                "without: pass example="
            )
        return {spec.names[0]: random_images(1, spec.channels, image_size, image_size)}
    if isinstance(example, (tuple, list)):
        if len(example) > len(spec.names):
            raise ProfileError(
                f"the example must be {spec.describe()}, found {len(example)} tensors"
            )
        example = dict(zip(spec.names, example, strict=False))
    return spec.read(example)


def _repeated(inputs: Mapping[str, Tensor], size: int, device: str) -> dict[str, Tensor]:
    """A batch of ``size`` samples, the given ones in turn."""
    return {
        name: value.to(device)[torch.arange(size, device=device) % len(value)]
        for name, value in inputs.items()
    }


def _whole_numbers(name: str, values: Sequence[int]) -> list[int]:
    if not len(values):
        raise ProfileError(f"{name} must be at least one whole number from 1, found none")
    return [whole_number(name, value) for value in values]


# -- timing ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subject:
    """A network in one way to run it.

    Attributes:
        begin: starts an evaluation of a batch; its time counts.
        inputs: the batch.
        way: backend, device, threads, batch size.
        plain: the stage whose size this plain network has; None for a network of several stages.
    """

    begin: Callable[[Inputs], Evaluation]
    inputs: Inputs
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
    evaluation = subject.begin(subject.inputs)
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
