"""Deadlines under load: how late answers come, which stage they are, and what a long life costs.

    python benchmarks/deadlines.py                              # the table: a second process loads every core
    python benchmarks/deadlines.py --load none --predictions 1000
    python benchmarks/deadlines.py --leak 100000                # threads, handles and memory over a long life

Every prediction is preceded by a bare ``threading.Event().wait`` of the same length, in the same process and
under the same load: nothing in Python can wake up more punctually than that. The ways to compute (a thread,
a process of its own) take turns within a round, so that all meet the same machine.

Load: one process with a busy thread for each core, started and ended here. ``same``: in this process's
session, as a job started from the same terminal. ``own``: in a session of its own, as another user's
program; where Linux groups processes by session, its scheduler then shares the cores between the two
groups rather than among the threads.
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
from _report import surroundings
from torch import Tensor

from anynest import AnytimePredictor, create_model
from anynest.store import write_whole
from anynest.store.hardware import usable_cores

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
ALLOWED = 0.002  # seconds at p99.9 beyond what the bare wait overshoots
BUSY = """
import hashlib, sys, threading
def work():
    data = bytes(1 << 20)
    while True:
        hashlib.sha256(data).digest()  # without the interpreter's lock
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=work, daemon=True).start()
work()
"""


@contextlib.contextmanager
def load(kind: str) -> Iterator[None]:
    """A second process that keeps every core busy; ended by its number at the end."""
    if kind == "none":
        yield
        return
    busy = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(usable_cores())], start_new_session=kind == "own"
    )
    try:
        time.sleep(1.0)
        yield
    finally:
        busy.kill()
        busy.wait()


class Watched:
    """A session that remembers when the first stage of the newest evaluation came out of the network."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.first: dict[int, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def begin(self, x: Tensor) -> Any:
        evaluation = self._session.begin(x)
        step = evaluation.step

        def stepped() -> Tensor | None:
            logits: Tensor | None = step()
            if logits is not None and evaluation.stage == 1:
                self.first[id(evaluation)] = time.monotonic()
            return logits

        return _Evaluation(evaluation, stepped)


class _Evaluation:
    def __init__(self, evaluation: Any, step: Any) -> None:
        self._evaluation, self.step = evaluation, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluation, name)


@dataclass
class Cell:
    """What one way to compute did with one deadline."""

    stages: Counter[int] = field(default_factory=Counter)
    overshoot: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    missed: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        empty = self.stages.pop(0, 0)
        beyond = quantiles(self.overshoot)["p99.9"] - quantiles(self.bare)["p99.9"]
        return {
            "stages": dict(sorted(self.stages.items())),
            "empty": empty,
            "empty_though_in_time": len(self.missed),
            "longest_such": max(self.missed, default=0.0),
            "cut": len(self.overshoot),
            "overshoot": quantiles(self.overshoot),
            "bare": quantiles(self.bare),
            "beyond_bare_p99.9": beyond,
            "kept": beyond <= ALLOWED,
        }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Of seconds; zeros where there are none."""
    ordered = sorted(values) or [0.0]
    last = len(ordered) - 1
    return {
        name: ordered[min(last, int(share * len(ordered)))] for name, share in QUANTILES.items()
    }


def bare_wait(seconds: float) -> float:
    """How late a thread wakes that does nothing else."""
    event = threading.Event()
    start = time.monotonic()
    event.wait(seconds)
    return time.monotonic() - start - seconds


def ask(
    predictor: AnytimePredictor, watched: Watched | None, x: Tensor, deadline: float, cell: Cell
) -> None:
    """One bare wait, one prediction."""
    cell.bare.append(bare_wait(deadline))
    if watched is not None:
        watched.first.clear()
    called = time.monotonic()
    prediction = predictor.predict(x, deadline, on_timeout="guess")
    cell.stages[prediction.stage] += 1
    if prediction.ended == "deadline":
        cell.overshoot.append(prediction.elapsed - deadline)
    if prediction.guessed and watched is not None:
        late = [at - called - deadline for at in list(watched.first.values())]
        cell.missed += [-seconds for seconds in late if seconds <= 0]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in options.networks:
        network = create_model(name).eval()
        x = torch.randn(network.in_channels, options.image_size, options.image_size)
        with contextlib.ExitStack() as stack:
            ways = {way: stack.enter_context(opened(network, way, options)) for way in options.ways}
            full = {way: alone(pair[0], x) for way, pair in ways.items()}
            for kind in options.load:
                for deadline in options.deadlines:
                    cells = {way: Cell() for way in ways}
                    with load(kind):
                        for _ in range(options.predictions):
                            for way, (predictor, watched) in ways.items():
                                ask(predictor, watched, x, deadline, cells[way])
                    for way, cell in cells.items():
                        about = {
                            "network": name,
                            "backend": options.backend,
                            "way": way,
                            "load": kind,
                            "deadline": deadline,
                            "predictions": options.predictions,
                            "all_stages_alone": full[way],
                        }
                        rows.append(about | cell.row())
                        show(rows[-1])
    return rows


@contextlib.contextmanager
def opened(
    network: Any, way: str, options: argparse.Namespace
) -> Iterator[tuple[AnytimePredictor, Watched | None]]:
    """A predictor, and what watches its session where it has a thread."""
    source = options.exports / network.name if options.exports else network
    with AnytimePredictor(source, options.backend, threads=options.threads) as predictor:
        watched = Watched(predictor.session)
        with AnytimePredictor(watched) as driven:  # type: ignore[arg-type]
            yield driven, watched


def alone(predictor: AnytimePredictor, x: Tensor, runs: int = 20) -> list[float]:
    """Seconds to each stage on the machine as it is: the median of some runs."""
    times = [[p.elapsed for p in predictor.stream(x)] for _ in range(runs)]
    return [sorted(column)[runs // 2] for column in zip(*times, strict=True)]


def show(row: dict[str, Any]) -> None:
    def ms(values: dict[str, float]) -> str:
        return " / ".join(f"{1e3 * values[name]:.2f}" for name in ("p50", "p99", "p99.9", "max"))

    shares = ", ".join(
        f"{stage}: {100 * n / row['predictions']:.1f} %" for stage, n in row["stages"].items()
    )
    print(
        f"{row['network']}, {row['backend']}, {row['way']}, load {row['load']}, "
        f"{1e3 * row['deadline']:g} ms, {row['predictions']} predictions\n"
        f"  stages {shares}; empty {row['empty']}, of these in time {row['empty_though_in_time']}\n"
        f"  overshoot, ms p50 / p99 / p99.9 / max of {row['cut']} that were cut: "
        f"{ms(row['overshoot'])}\n"
        f"  a bare wait's {ms(row['bare'])}; p99.9 beyond it {1e3 * row['beyond_bare_p99.9']:.2f} ms: "
        f"{'kept' if row['kept'] else 'NOT KEPT'}",
        flush=True,
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = {"type": lambda text: text.split(",")}
    parser.add_argument("--networks", default=["width_nested_resnet42"], **listed)  # type: ignore[arg-type]
    parser.add_argument("--backend", default="torch", choices=("torch", "onnxruntime"))
    parser.add_argument("--exports", type=Path, help="folder with an exported folder a network")
    parser.add_argument("--ways", default=["thread"], **listed)  # type: ignore[arg-type]
    parser.add_argument("--load", default=["same", "own"], help="none, same, own", **listed)  # type: ignore[arg-type]
    parser.add_argument(
        "--deadlines",
        default=[0.005, 0.010],
        type=lambda text: [float(part) for part in text.split(",")],
        help="seconds, between commas",
    )
    parser.add_argument("--predictions", type=int, default=10_000, help="of each way and deadline")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--leak", type=int, metavar="N", help="a life of N predictions instead")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = surroundings("cpu")
    if options.leak:
        result["lives"] = [_long_life.live(options.leak)]
    else:
        result["rows"] = measure(options)
    if options.json:
        write_whole(options.json, json.dumps(result, indent=2).encode())


if __name__ == "__main__":
    main()
