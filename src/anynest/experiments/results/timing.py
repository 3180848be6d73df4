"""Figure 10's measurement: every network of a panel on the same inputs, one at a time, timed.

The networks are the trained ones of Figure 9, run by ``anynest.predict`` on one thread. Each input
is timed ``ROUNDS`` times, in rounds that are far apart, and its fastest time counts: what slows a
busy machine down for a moment is not the input's.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..._version import __version__
from ...data import Dataset
from ...engines.open import open_session
from ...engines.session import Session, stages
from ...store.hardware import describe_environment
from ...training import DataConfig
from ..catalog.experiment import Run
from ..catalog.fig9 import ANYTIME, PANELS, Panel, oracle_runs
from ..catalog.protocols import Protocol
from ..sweep.cell import Cell, network_name
from ..sweep.job import revision
from .deadline_errors import (
    SHARES,
    Timed,
    anytime_error,
    deadlines_of,
    oracle_all_error,
    oracle_each_error,
)
from .records import DEADLINES, Line, add_results, identity, read_results

IMAGES = 1000  # the first of the test split, which is in no order
ROUNDS = 3
WARM_UPS = 10


@dataclass(frozen=True)
class Plan:
    """One panel and seed. nested, baseline, oracle: the cells of Figure 9, by their scheme."""

    panel: Panel
    seed: int
    anytime: dict[str, Cell]
    oracle: tuple[Cell, ...]

    @property
    def cells(self) -> list[Cell]:
        """All of them."""
        return [*self.anytime.values(), *self.oracle]

    @property
    def key(self) -> str:
        """As a cell's key: a hash of what decides the outcome."""
        parts = [self.panel.name, ROUNDS, [cell.key for cell in self.cells]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def plans(protocol: Protocol, seeds: int) -> list[Plan]:
    """Every panel, every seed."""
    found = []
    for panel in PANELS:
        for seed in range(seeds):
            schemes = {f"nest: {name}": Run(name, ANYTIME) for name in panel.nested}
            if panel.baseline:
                schemes = {f"base: {panel.baseline}": Run(panel.baseline, ANYTIME), **schemes}
            anytime = {scheme: run.cell(protocol, seed) for scheme, run in schemes.items()}
            oracle = tuple(run.cell(protocol, seed) for run in oracle_runs(panel, protocol))
            found.append(Plan(panel, seed, anytime, oracle))
    return found


def measure_plan(
    plan: Plan,
    out: Path,
    data: Dataset,
    protocol: Protocol,
    images: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Line:
    """Time one panel's networks and put them to the deadlines; the line for the results.

    report: called with (inputs timed, of how many).

    Errors: as ``open_session`` where a cell's weights are missing.
    """
    inputs, labels = test_images(data, images or IMAGES)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        sessions = []
        for cell in plan.cells:
            session = open_session(cell.folder(out), threads=1)
            stack.callback(session.close)
            sessions.append(session)
        timed = time_all(sessions, plan.cells, inputs, labels, report)
    anytime = dict(zip(plan.anytime, timed, strict=False))
    members = timed[len(plan.anytime) :]
    biggest = max(members, key=lambda member: member.mean_seconds[-1])
    deadlines = deadlines_of(biggest)
    classes = data.num_classes
    errors = {
        name: [anytime_error(network, t, classes) for t in deadlines]
        for name, network in anytime.items()
    }
    errors["oracle-all"] = [oracle_all_error(members, t, classes) for t in deadlines]
    errors["oracle-each"] = [oracle_each_error(members, t, classes) for t in deadlines]
    return {
        "kind": DEADLINES,
        "key": plan.key,
        "protocol": protocol.name,
        "data": data.label,
        "panel": plan.panel.name,
        "seed": plan.seed,
        "shares": [*SHARES, None],
        "deadlines": deadlines,
        "error": errors,
        "mean_seconds": {network.name: network.mean_seconds for network in timed},
        "biggest": biggest.name,
        "test_images": len(labels),
        "rounds": ROUNDS,
        "seconds": round(time.perf_counter() - began, 3),
        "revision": revision(),
        "anynest": __version__,
        "environment": {**describe_environment(torch.device("cpu")), "threads": 1},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def test_images(data: Dataset, count: int) -> tuple[list[Tensor], list[int]]:
    """The first images of the test split, each [1, C, H, W], normalised; and their labels."""
    loader = DataConfig(evaluation_batch_size=1).evaluation_loader(
        data.test, data, torch.device("cpu")
    )
    inputs, labels = [], []
    for image, label in loader.batches(0):
        inputs.append(image)
        labels.append(int(label))
        if len(labels) == count:
            break
    return inputs, labels


def time_all(
    sessions: Sequence[Session],
    cells: Sequence[Cell],
    inputs: Sequence[Tensor],
    labels: Sequence[int],
    report: Callable[[int, int], None],
) -> list[Timed]:
    """Every network on every input, in turn, another one first each time."""
    count = len(inputs)
    seconds = [np.full((count, session.num_stages), np.inf) for session in sessions]
    wrong = [np.ones((count, session.num_stages), bool) for session in sessions]
    for session in sessions:
        for _ in range(WARM_UPS):
            run_once(session, inputs[0])
    for turn in range(ROUNDS):
        for number, (image, label) in enumerate(zip(inputs, labels, strict=True)):
            for step in range(len(sessions)):
                index = (number + turn + step) % len(sessions)
                times, answers = run_once(sessions[index], image)
                seconds[index][number] = np.minimum(seconds[index][number], times)
                wrong[index][number] = [answer != label for answer in answers]
            report(turn * count + number + 1, ROUNDS * count)
    names = [f"{network_name(c.design, c.independent)}, {c.variant}" for c in cells]
    return [Timed(*made) for made in zip(names, seconds, wrong, strict=True)]


def run_once(session: Session, image: Tensor) -> tuple[list[float], list[int]]:
    """Seconds from the call until each stage's answer, and the answers."""
    times, logits = [], []
    began = time.perf_counter()
    evaluation = session.begin(image)
    for _, out in stages(evaluation):
        times.append(time.perf_counter() - began)
        logits.append(out)
    evaluation.close()
    return times, [int(out.argmax()) for out in logits]


def measure_missing(
    protocol: Protocol,
    seeds: int,
    out: Path,
    data: Dataset,
    results: Path,
    say: Callable[[str], None] = lambda text: None,
    images: int | None = None,
) -> int:
    """Measure every panel and seed that the results file does not have; how many those were."""
    known = {identity(line) for line in read_results(results)}
    left = [
        plan for plan in plans(protocol, seeds) if (DEADLINES, plan.key, data.label) not in known
    ]
    for number, plan in enumerate(left, start=1):
        line = measure_plan(plan, out, data, protocol, images)
        add_results(results, [line])
        say(
            f"  latencies {number} of {len(left)}: panel {plan.panel.name}, seed {plan.seed}: "
            f"{len(plan.cells)} networks on {line['test_images']} images in {line['seconds']:.0f} s"
        )
    return len(left)
