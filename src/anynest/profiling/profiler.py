"""A network's profile: counted and measured here and now, the plain networks of its stages beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..engines.checks import MAX_THREADS
from ..engines.open import open_session
from ..engines.session import BACKENDS, Session
from ..nets import AnytimeNetwork, StageCost, create_model
from ..store.hardware import describe_environment, find_device
from . import Profile, ProfileError, StageLatency
from .latency import Subject, measure


def profile_network(
    network: AnytimeNetwork,
    *,
    image_size: int,
    export: Path | None = None,
    backends: Sequence[str] = ("torch",),
    threads: Sequence[int] = (1,),
    batch_sizes: Sequence[int] = (1,),
    device: str = "cpu",
    rounds: int = 40,
    plain: bool = True,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Measure every stage of a network in every way asked for, all in one interleaved run.

    Args:
        network: with weights or without; times do not depend on them.
        image_size: pixels a side.
        export: the folder of an export of the network, measured in place of it (``onnxruntime``).
        backends: of ``torch`` and ``onnxruntime`` (on the CPU).
        threads: of the kernels, in turn.
        batch_sizes: images at once.
        device: where torch computes.
        rounds: of five runs each; 40 give 200 runs.
        plain: also measure the plain network of each stage's size.
        report: called with (turns done, turns in all); may raise, to stop.

    Raises:
        ProfileError: a number below 1, too many threads, an unknown backend, nothing to measure.
        ValueError: a device that is not there; the network has no registered name, so that its plain
            ones cannot be built.
    """
    _check(backends, threads, batch_sizes, image_size)
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
    given: dict[str, Any] = {**network.arguments}
    given.pop("subnetwork", None)
    for stage in network.outputs:
        arguments = given if "independent" in given else {**given, "independent": stage}
        yield create_model(network.name, **arguments).eval()


def _check(
    backends: Sequence[str], threads: Sequence[int], batch_sizes: Sequence[int], image_size: int
) -> None:
    for name, values in (("threads", threads), ("batch sizes", batch_sizes)):
        if not values or not all(type(value) is int and value >= 1 for value in values):
            raise ProfileError(f"{name} must be whole numbers from 1, found {list(values)}")
    if max(threads) > MAX_THREADS:
        raise ProfileError(f"threads must be at most {MAX_THREADS}, found {max(threads)}")
    if type(image_size) is not int or image_size < 1:
        raise ProfileError(f"the image size must be at least 1 pixel, found {image_size!r}")
    if not backends or not set(backends) <= set(BACKENDS):
        raise ProfileError(f"backends must be of {', '.join(BACKENDS)}, found {list(backends)}")


def _subject(
    session: Session, way: tuple[str, str, int, int], image_size: int, stage: int | None
) -> Subject:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(way[3], session.in_channels, image_size, image_size, generator=draw)
    return Subject(session.begin, images.to(way[1]), way, stage)


def _numbered(costs: Sequence[StageCost]) -> tuple[StageCost, ...]:
    """Counted from 1, also where the network is one stage of another."""
    return tuple(replace(cost, stage=number) for number, cost in enumerate(costs, 1))
