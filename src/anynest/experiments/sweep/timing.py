"""Figure 10's measurement: all networks of a panel are timed on the same inputs, one at a time.

The networks are Figure 9's trained ones, run by ``anynest.engines`` on one thread. Each input is
timed in ``ROUNDS`` separate rounds, of which the fastest counts, to exclude disturbances of a busy
machine.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
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
from ..catalog.cell import Cell, network_name
from ..catalog.fig10 import ROUNDS, Measurement, measurements
from ..catalog.protocols import Protocol
from ..results.deadline_errors import (
    SHARES,
    Timed,
    anytime_error,
    deadlines_of,
    oracle_all_error,
    oracle_each_error,
)
from ..results.records import DEADLINES, Record, add_results, identity, read_results
from .job import revision

IMAGES = 1000  # of the test split, whose order is random
WARM_UPS = 10


def missing(protocol: Protocol, seeds: int, label: str, results: Path) -> list[Measurement]:
    """Every panel and seed that the results file does not contain, on the data of this label."""
    found = {identity(record) for record in read_results(results)}
    wanted = measurements(protocol, seeds)
    return [one for one in wanted if (DEADLINES, one.key, label) not in found]


def measure_missing(
    protocol: Protocol,
    seeds: int,
    out: Path,
    data: Dataset,
    results: Path,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Measures every panel and seed that the results file does not contain.

    Raises:
        RunFolderError: As ``open_session``, if a cell's weights are missing.
    """
    left = missing(protocol, seeds, data.label, results)
    for number, one in enumerate(left, start=1):
        record = measure_deadlines(one, out, data, protocol)
        add_results(results, [record])
        say(
            f"  latencies {number} of {len(left)}: panel {one.panel.name}, seed {one.seed}: "
            f"{len(one.cells)} networks on {record['test_images']} images in "
            f"{record['seconds']:.0f} s"
        )


def measure_deadlines(
    measurement: Measurement, out: Path, data: Dataset, protocol: Protocol
) -> Record:
    """Times one panel's networks and computes their errors at the deadlines."""
    inputs, labels = test_images(data, IMAGES)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        sessions = []
        for cell in measurement.cells:
            session = open_session(cell.folder(out), threads=1)
            stack.callback(session.close)
            sessions.append(session)
        timed = time_all(sessions, measurement.cells, inputs, labels)
    anytime = dict(zip(measurement.anytime, timed, strict=False))
    members = timed[len(anytime) :]
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
        "key": measurement.key,
        "protocol": protocol.name,
        "data": data.label,
        "panel": measurement.panel.name,
        "seed": measurement.seed,
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
    """The first images of the test split, ``[1, C, H, W]`` each, normalised, and their labels."""
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
) -> list[Timed]:
    """Times every network on every input; the order of the networks rotates."""
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
    names = [f"{network_name(c.design, c.independent)}, {c.variant}" for c in cells]
    return [Timed(*made) for made in zip(names, seconds, wrong, strict=True)]


def run_once(session: Session, image: Tensor) -> tuple[list[float], list[int]]:
    """Seconds from the call to each stage's answer, and the answers."""
    times, logits = [], []
    began = time.perf_counter()
    evaluation = session.begin(image)
    for _, out in stages(evaluation):
        times.append(time.perf_counter() - began)
        logits.append(out)
    evaluation.close()
    return times, [int(out.argmax()) for out in logits]
