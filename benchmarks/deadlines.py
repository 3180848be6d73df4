"""How late predictions return after their deadline, on idle and on loaded cores.

    python benchmarks/deadlines.py                        # the tables, in at most six minutes
    python benchmarks/deadlines.py --loads none --ways none,slice --seconds 60
    python benchmarks/deadlines.py --leak 100000          # threads, handles and memory over time

One deadline falls into each stage of the network: halfway between the stages' times, measured
first on the idle machine. The ways to schedule the computing thread take turns within a round.
Each prediction follows a bare ``threading.Event().wait`` of the same length in the same process:
no Python program wakes more punctually than that.

Loads, started and ended here: ``none``; ``same``: a process with a busy thread per core, in this
session; ``own``: the same in a session of its own, as another user's program. Where Linux groups
processes by session (autogroups), cores are shared between the groups, not among the threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _long_life
import torch
from _markdown import heading
from _report import surroundings
from torch import Tensor

from anynest import AnytimePredictor, create_model
from anynest.engines.open import open_session
from anynest.engines.session import BACKENDS, Evaluation, Session
from anynest.predict.thread_scheduling import SCHEDULING
from anynest.store import write_whole
from anynest.store.hardware import usable_cores

LOADS = ("none", "same", "own")
LOAD_NAMES = {
    "none": "Idle cores",
    "same": "Every core loaded, by a process of the same session",
    "own": "Every core loaded, by a process in a session of its own",
}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
ALONE_RUNS = 50
BUSY = """
import hashlib, sys, threading
def work():
    data = bytes(1 << 20)
    while True:
        hashlib.sha256(data).digest()  # releases the interpreter's lock
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=work, daemon=True).start()
work()
"""


@contextlib.contextmanager
def load(kind: str) -> Iterator[None]:
    """Keep every core busy with a second process."""
    if kind == "none":
        yield
        return
    busy = subprocess.Popen(
        [sys.executable, "-P", "-c", BUSY, str(usable_cores())], start_new_session=kind == "own"
    )
    try:
        time.sleep(1.0)
        yield
    finally:
        busy.kill()
        busy.wait()


class WatchedSession:
    """A session that records when the network finished the first stage of the last evaluation."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.first_stage_at: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def begin(self, x: Tensor) -> WatchedEvaluation:
        return WatchedEvaluation(self._session.begin(x), self)


class WatchedEvaluation:
    """An evaluation of a ``WatchedSession``."""

    def __init__(self, evaluation: Evaluation, session: WatchedSession) -> None:
        self._evaluation, self._session = evaluation, session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluation, name)

    def step(self) -> Tensor | None:
        logits = self._evaluation.step()
        if logits is not None and self._evaluation.stage == 1:
            self._session.first_stage_at = time.monotonic()
        return logits


@dataclass
class Row:
    """The predictions of one way under one deadline and load."""

    load: str
    deadline: float
    in_stage: int
    way: str
    stages: Counter[int] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    empty_in_time: int = 0

    def ask(self, predictor: AnytimePredictor, session: WatchedSession, x: Tensor) -> None:
        """One bare wait, then one prediction."""
        self.bare.append(bare_wait(self.deadline))
        session.first_stage_at = None
        called = time.monotonic()
        prediction = predictor.predict(x, self.deadline, on_timeout="guess")
        returned = time.monotonic()
        self.stages[prediction.stage] += 1
        if prediction.stop_reason == "deadline":
            self.late.append(returned - called - self.deadline)
        first = session.first_stage_at
        if prediction.guessed and first is not None and first <= called + self.deadline:
            self.empty_in_time += 1

    def to_json(self) -> dict[str, Any]:
        """Plain values, times in seconds."""
        count = len(self.bare)
        return {
            "load": self.load,
            "deadline": self.deadline,
            "in_stage": self.in_stage,
            "way": self.way,
            "predictions": count,
            "cut": len(self.late),
            "late": quantiles(self.late),
            "bare": quantiles(self.bare),
            "stages": {stage: n for stage, n in sorted(self.stages.items()) if stage},
            "mean_stage": sum(stage * n for stage, n in self.stages.items()) / max(1, count),
            "empty": self.stages[0],
            "empty_in_time": self.empty_in_time,
        }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Of seconds; zeros where there are none."""
    ordered = sorted(values) or [0.0]
    last = len(ordered) - 1
    return {name: ordered[min(last, int(q * len(ordered)))] for name, q in QUANTILES.items()}


def bare_wait(seconds: float) -> float:
    """Seconds by which a wait without any other work is too long."""
    event = threading.Event()
    start = time.monotonic()
    event.wait(seconds)
    return time.monotonic() - start - seconds


def stage_times(predictor: AnytimePredictor, x: Tensor) -> list[float]:
    """Median seconds to each stage on the idle machine."""
    runs = [[p.elapsed for p in predictor.stream(x)] for _ in range(ALONE_RUNS)]
    return [sorted(column)[ALONE_RUNS // 2] for column in zip(*runs, strict=True)]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rows, in about ``options.seconds``."""
    network = create_model(options.network).eval()
    x = torch.randn(network.in_channels, options.image_size, options.image_size)
    session = open_session(network, backend=options.backend, threads=options.threads)
    with contextlib.closing(session), contextlib.ExitStack() as stack:
        watched = WatchedSession(session)
        predictors = {
            way: stack.enter_context(AnytimePredictor(watched, scheduling=way))  # type: ignore[arg-type]
            for way in options.ways
        }
        started = time.monotonic()
        times = stage_times(next(iter(predictors.values())), x)
        middles = [(a + b) / 2 for a, b in zip([0.0, *times], times, strict=False)]
        deadlines = options.deadlines or middles
        rows: list[Row] = []
        for number, kind in enumerate(options.loads, 1):
            here = [
                Row(kind, deadline, 1 + sum(t <= deadline for t in times), way)
                for deadline in deadlines
                for way in options.ways
            ]
            until = started + options.seconds * number / len(options.loads)
            with load(kind):
                while not here[0].bare or time.monotonic() < until:
                    for row in here:
                        row.ask(predictors[row.way], watched, x)
            rows += here
    return {
        "network": options.network,
        "backend": options.backend,
        "kernel_threads": options.threads,
        "stage_times": times,
        "rows": [row.to_json() for row in rows],
    }


def markdown(result: dict[str, Any]) -> str:
    """The tables as they stand in the documentation."""
    times = ", ".join(f"{1e3 * seconds:.2f}" for seconds in result["stage_times"])
    lines = [
        *heading(result),
        "",
        f"`{result['network']}`, {result['backend']}, kernels with {result['kernel_threads']} "
        f"thread(s); stages after {times} ms on the idle machine. Times in ms past the deadline, "
        "p50 / p90 / p99 / p99.9.",
    ]
    for kind in dict.fromkeys(row["load"] for row in result["rows"]):
        lines += [
            "",
            f"**{LOAD_NAMES[kind]}**",
            "",
            "| deadline | way | n | late | bare wait | mean stage | no answer | of these in time |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [line(row) for row in result["rows"] if row["load"] == kind]
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """One row of a table."""

    def ms(values: dict[str, float]) -> str:
        return " / ".join(f"{1e3 * seconds:.2f}" for seconds in values.values())

    cells = [
        f"{1e3 * row['deadline']:.2f} ms, in stage {row['in_stage']}",
        row["way"],
        str(row["predictions"]),
        ms(row["late"]),
        ms(row["bare"]),
        f"{row['mean_stage']:.3f}",
        str(row["empty"]),
        str(row["empty_in_time"]),
    ]
    return f"| {' | '.join(cells)} |"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def some_of(known: Sequence[str]) -> dict[str, Any]:
        def split(text: str) -> list[str]:
            if wrong := set(text.split(",")) - set(known):
                raise argparse.ArgumentTypeError(f"choose from {','.join(known)}, found {wrong}")
            return text.split(",")

        return {"type": split, "default": list(known), "help": f"of {','.join(known)}"}

    parser.add_argument("--network", default="width_nested_resnet42")
    parser.add_argument("--backend", default="onnxruntime", choices=BACKENDS)
    parser.add_argument("--ways", **some_of(SCHEDULING))
    parser.add_argument("--loads", **some_of(LOADS))
    parser.add_argument(
        "--deadlines",
        type=lambda text: [float(part) for part in text.split(",")],
        help="seconds, separated by commas (default: one in each stage)",
    )
    parser.add_argument("--seconds", type=float, default=330.0, help="for all measurements")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of the kernels")
    parser.add_argument("--leak", type=int, metavar="N", help="make N predictions instead")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = surroundings("cpu")
    if options.leak:
        result["life"] = _long_life.live(options.leak)
    else:
        result |= measure(options)
        print(markdown(result), flush=True)
    if options.json:
        write_whole(options.json, json.dumps(result, indent=2).encode())


if __name__ == "__main__":
    main()
