"""The server under load, beside other policies and other servers; faults, and a simulation.

    python benchmarks/serve.py --data digits --quick                  # a smoke test, in seconds
    python benchmarks/serve.py --data cifar10 --run runs/serve --out results/serving.jsonl
    python benchmarks/serve.py --part peers --peers envs --run runs/serve --out results/serving.jsonl
    python benchmarks/serve.py --part soak --minutes 30 --run runs/serve --out results/serving.jsonl
    python benchmarks/serve.py --part faults --run runs/serve --out results/serving.jsonl
    python benchmarks/serve.py --simulate --out results/serving.jsonl
    python benchmarks/serve.py --read results/serving.jsonl --into docs/serving_benchmark.md

The server runs on one core, the load generator on another (``_serve_load.py``): an open loop, with
latency from the scheduled send. Loads are multiples of C, the engine's full-depth capacity of one
core, which is measured once for all records of a file. A late answer counts as wrong. All servers
get the same images at the same times.

``ours`` measures this server; ``policies`` measures it at other loads, by turns with its scheduler
with *first stage first* and, behind the same HTTP, the static network of each stage; ``peers``
measures other servers with those static networks, each with the batch size and waiting time that
serve most requests in time at 1.5 C.

--run trains a network into the folder if it holds none: the one part that uses both cores.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _serve_faults
import _serve_network
import _serve_peers
import _serve_plan
import _serve_report
import numpy as np
from _report import surroundings
from _serve_arrivals import BURSTS, arrival_times
from _serve_network import Facts
from _serve_ours import command as our_command
from _serve_ours import read_probe
from _serve_ports import free_port
from _serve_processes import (
    Server,
    Traffic,
    cores,
    serving,
    start_load,
    stolen,
    summarise,
)
from _serve_report import FIRST, OURS, Record

from anynest.serving.estimates import StepTimes
from anynest.store import read_info

PARTS = ("ours", "policies", "peers", "soak", "faults")
DEADLINE = 0.025
CALIBRATION_RATE = 400.0  # requests per second, all refused
CALIBRATION_LOADS = (0.6, 3.0)  # many steps a request, and few
QUICK_RATE = 100.0  # stands for C, so that a small network on a busy machine can do it
SEED = 1
MOST_STOLEN = 0.02  # seconds of each second that the hypervisor may take from both cores ...
RETRIES = 2  # ... or the load is measured once more


@dataclass(frozen=True)
class Point:
    """One run: arrivals at a multiple of C (of stage 1's capacity: ``beyond``), for some time."""

    arrivals: str
    load: float
    deadline: float = DEADLINE
    length: float = 1.0
    beyond: bool = False


GOAL = Point("poisson", 0.6, length=3)
OVER = Point("poisson", 1.3, beyond=True)
BURSTY = [Point(kind, load, length=1.5) for kind in BURSTS for load in (1.0, 1.5)]
TIGHT = [
    Point("poisson", load, deadline) for deadline in (0.010, 0.050) for load in (0.6, 1.5, 3.0)
]
OWN = [Point("poisson", load) for load in (0.3, 2.0, 4.0)] + TIGHT
# of this server and its policies; the last one's lag stays for seconds
COMPARED = [GOAL, *(Point("poisson", load) for load in (1.0, 1.5, 3.0)), *BURSTY, OVER]
RIVALS = [*(Point("poisson", load) for load in (0.6, 1.0, 1.5, 3.0)), Point("gamma", 1.5)]
QUICK = [Point("poisson", 0.6), Point("gamma", 1.5)]


class Bench:
    """What all parts share: the network's facts, its images, and where records go."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.server_core, _ = cores()
        self.run: Path = options.run or folder / "run"
        self.command = command_line()
        quick = {"base_width": 4} if options.quick else {}
        _serve_network.train_once(
            self.run, options.data, epochs=options.epochs, limit=options.limit, **quick
        )
        count = 200 if options.quick else _serve_network.IMAGES
        self.images, self.labels = _serve_network.test_images(options.data, count)
        self.classes = list(read_info(self.run).classes)
        known = _serve_network.known_facts(options.out, self.run)
        self.facts: Facts = known or _serve_network.facts(
            self.run, options.data, self.server_core, count=count, seconds=options.profile_seconds
        )
        if known is None:
            self.record("facts", **self.facts.to_json(), **surroundings("cpu"))
        for line in _serve_report.facts_lines(self.facts.to_json()):
            print(line, flush=True)

    def record(self, kind: str, **values: Any) -> Record:
        """Append a record to --out."""
        record = {"kind": kind, **values, "command": self.command}
        if self.options.out:
            with self.options.out.open("a") as out:
                out.write(json.dumps(record) + "\n")
        return record

    def ours(
        self, source: Path | None = None, *, first: bool = False
    ) -> AbstractContextManager[Server]:
        """This server with a network, by default the trained one."""
        port = free_port()
        probe = probe_file(self.folder, port)
        command = our_command(source or self.run, port, probe, first_stage_first=first)
        return serving(command, port, "/v2/health/ready", self.server_core, self.folder)

    def traffic(self, server: Server) -> Traffic:
        """How this server wants its requests: its only model's name and input."""
        name = json.loads(server.get("/v2/repository/index", "POST")[1])[0]["name"]
        (given,) = json.loads(server.get(f"/v2/models/{name}")[1])["inputs"]
        shape = [1, *self.images.shape[1:]]
        tensor = {"name": given["name"], "datatype": "UINT8", "shape": shape}
        return Traffic(f"/v2/models/{name}/infer", "v2", tensor, self.classes)

    def rate(self, point: Point) -> float:
        """Requests per second."""
        return self.rate_of(point.load, self.facts.first if point.beyond else None)

    def rate_of(self, load: float, capacity: float | None = None) -> float:
        """The same of a multiple of a capacity, by default C."""
        capacity = capacity or self.facts.capacity
        return load * (min(capacity, QUICK_RATE) if self.options.quick else capacity)

    def measure(
        self,
        name: str,
        server: Server,
        traffic: Traffic,
        points: Sequence[Point],
        depth: int | None = None,
        **more: Any,
    ) -> Iterator[Record]:
        """Run points against a server; those that the hypervisor disturbed once more."""
        for point in points:
            for _ in range(1 + RETRIES):
                record = self.measure_point(name, server, traffic, point, depth, **more)
                if record["stolen"] <= MOST_STOLEN:
                    break
            yield self.record("load", **record)

    def measure_point(
        self,
        name: str,
        server: Server,
        traffic: Traffic,
        point: Point,
        depth: int | None,
        **more: Any,
    ) -> Record:
        """One run."""
        rate, seconds = self.rate(point), self.options.seconds * point.length
        times = arrival_times(point.arrivals, rate, seconds, SEED)
        probe = probe_file(self.folder, server.port)
        probed = "tuned" not in more
        before, took = server.usage(), stolen()
        if probed:
            read_probe(server.process.pid, probe)
        load = start_load(self.folder, server.port, times, self.images, traffic, point.deadline)
        found = summarise(load.outcome(), self.labels, point.deadline, depth)
        if probed:
            found["probe"] = read_probe(server.process.pid, probe)
            found["reply"] = server.metric("anynest_wakeup_lag_seconds")
        after = server.usage()
        time.sleep(0.3)
        return {
            "server": name,
            "arrivals": point.arrivals,
            "load": round(rate / self.facts.capacity, 4),
            "deadline": point.deadline,
            "rate": rate,
            "seconds": seconds,
            **found,
            "memory": [before["memory"], after["memory"]],
            "cpu": after["cpu"] - before["cpu"],
            "stolen": (stolen() - took) / seconds,
            **more,
        }

    def warm(self, server: Server, traffic: Traffic) -> None:
        """A second of moderate load that is not counted."""
        times = arrival_times("poisson", self.rate_of(0.7), 1.0)
        start_load(
            self.folder, server.port, times, self.images, traffic, 1.0, timer=False
        ).outcome()


def command_line() -> str:
    """The command, without the folders that things lie in on this machine."""
    words = [word if not word.startswith("/") else Path(word).name for word in sys.argv]
    return shlex.join(["python", *words])


def probe_file(folder: Path, port: int) -> Path:
    return folder / f"probe-{port}.json"


def show(record: Record) -> None:
    print(
        f"{record['server']:>18} {record['arrivals']:>8} {record['load']:5.2f} C "
        f"{1e3 * record['deadline']:3.0f} ms: {100 * record['in_time']:6.2f} % in time, "
        f"stage {record['mean_stage']:.2f}, {record['timeouts']} 504, "
        f"{100 * record['refused']:.1f} % refused, accuracy {100 * record['accuracy']:.1f}, "
        f"lag {1e3 * record['lag']['p99']:.2f} ms, generator {100 * record['generator']['busy']:.0f} %",
        flush=True,
    )


# -- parts ------------------------------------------------------------------------------------------
def measure_ours(bench: Bench) -> None:
    points = QUICK if bench.options.quick else OWN
    for number in range(bench.options.rounds):
        with bench.ours() as server:
            traffic = bench.traffic(server)
            bench.warm(server, traffic)
            if number == 0:
                idle(bench, server, traffic)
                calibrate(bench, server, traffic)
            for record in bench.measure(OURS, server, traffic, points, round=number):
                show(record)


def measure_policies(bench: Bench) -> None:
    points = QUICK if bench.options.quick else COMPARED
    files = _serve_network.write_static(bench.run, bench.folder)
    for number in range(bench.options.rounds):
        with ExitStack() as stack:
            contexts = [(OURS, bench.ours(), None), (FIRST, bench.ours(first=True), None)]
            contexts += [(f"static {d}", bench.ours(file), d) for d, file in enumerate(files, 1)]
            opened = []  # all at once: they take turns at each load
            for name, context, depth in contexts:
                server = stack.enter_context(context)
                traffic = bench.traffic(server)
                bench.warm(server, traffic)
                opened.append((name, server, traffic, depth))
            for point in points:
                for name, server, traffic, depth in opened:
                    for record in bench.measure(
                        name, server, traffic, [point], depth, round=number
                    ):
                        show(record)


def idle(bench: Bench, server: Server, traffic: Traffic) -> None:
    """HTTP's price: a request now and then, beside the engine called in the same way."""
    gap, rounds = 0.04, 3
    count = 10 if bench.options.quick else 100
    http: list[float] = []
    engine: list[float] = []
    for _ in range(rounds):
        engine += _serve_network.idle_times(bench.run, bench.images, bench.server_core, count, gap)
        times = [gap * n for n in range(count)]
        load = start_load(bench.folder, server.port, times, bench.images, traffic, 1.0, timer=False)
        outcome = load.outcome()
        http += (outcome["done"] - outcome["sent"]).tolist()
    values = {"http": float(np.median(http)), "engine": float(np.median(engine))}
    price = values["http"] - values["engine"]
    bench.record("idle", **values, price=price, requests=len(http), gap=gap)
    print(
        f"HTTP's price at p50, idle: {1e3 * price:.2f} ms ({1e3 * values['http']:.2f} against "
        f"{1e3 * values['engine']:.2f} ms)",
        flush=True,
    )


def calibrate(bench: Bench, server: Server, traffic: Traffic) -> None:
    """The server's work beside its steps' own time, in seconds of its core: for the simulation.

    Requests of so short a deadline that all are refused cost ``receive`` each. Those of two loads
    cost ``answer`` more, and ``step`` for each step: two equations.
    """
    seconds = 0.5 if bench.options.quick else 2.0
    times = [n / CALIBRATION_RATE for n in range(round(CALIBRATION_RATE * seconds))]
    refused, receive = work_of(bench, server, traffic, times, 0.001)
    step_times = StepTimes(bench.facts.seconds, bench.facts.batches)
    probe = probe_file(bench.folder, server.port)
    steps, works = [], []
    for load in CALIBRATION_LOADS:
        times = arrival_times("poisson", bench.rate_of(load), seconds)
        read_probe(server.process.pid, probe)
        _, work = work_of(bench, server, traffic, times, DEADLINE)
        ran = read_probe(server.process.pid, probe)["steps"]
        computed = sum(
            count * step_times.profiled(int(stage), max(1, round(rows / count)))
            for stage, (count, rows, _) in ran.items()
        )
        steps.append(sum(count for count, _, _ in ran.values()) / len(times))
        works.append(work - receive - computed / len(times))
    more = steps[0] - steps[1]
    step = max(0.0, (works[0] - works[1]) / more) if more else 0.0
    answer = max(0.0, works[1] - step * steps[1])
    transit = max(0.0, float(np.median(refused["done"] - refused["sent"])) - receive) / 2
    bench.record("overheads", receive=receive, answer=answer, step=step, transit=transit)
    print(
        f"the server's own work: {1e6 * receive:.0f} us a request, {1e6 * answer:.0f} us an answer, "
        f"{1e6 * step:.0f} us a step; {1e6 * transit:.0f} us on the way",
        flush=True,
    )


def work_of(
    bench: Bench, server: Server, traffic: Traffic, times: Sequence[float], deadline: float
) -> tuple[dict[str, Any], float]:
    """The outcome of requests, and the server's CPU seconds for each."""
    before = server.usage()["cpu"]
    load = start_load(
        bench.folder, server.port, times, bench.images, traffic, deadline, timer=False
    )
    outcome = load.outcome()
    return outcome, (server.usage()["cpu"] - before) / len(times)


def measure_peers(bench: Bench) -> None:
    """Other servers, with the static network of each stage."""
    if bench.options.peers is None:
        sys.exit("serve.py: --part peers needs --peers FOLDER, for their environments")
    graphs = _serve_network.write_graphs(bench.run, bench.folder)
    points = QUICK if bench.options.quick else RIVALS
    for peer in bench.options.names:
        try:
            python = _serve_peers.python_of(peer, bench.options.peers)
            version = _serve_peers.version_of(peer, python)
            for depth, graph in enumerate(graphs, 1):
                measure_peer(bench, peer, version, python, graph, depth, points)
        except _serve_peers.Missing as reason:
            bench.record("missing", server=peer, reason=str(reason))
            print(f"left out: {reason}", flush=True)


def measure_peer(
    bench: Bench,
    peer: str,
    version: str,
    python: str,
    graph: Path,
    depth: int,
    points: Sequence[Point],
) -> None:
    """Try each batching at 1.5 C for a third of a run, then measure the best."""
    traffic = _serve_peers.traffic_of(peer)
    shared = (graph, bench.run)

    def opened(tuning: tuple[int, float]) -> AbstractContextManager[Server]:
        return _serve_peers.peer_serving(
            peer, python, *shared, *tuning, bench.server_core, bench.folder
        )

    scores: dict[tuple[int, float], float] = {}
    for tuning in _serve_peers.TUNINGS:
        with opened(tuning) as server:
            bench.warm(server, traffic)
            rate = bench.rate_of(1.5)
            times = arrival_times("poisson", rate, bench.options.seconds / 3)
            load = start_load(
                bench.folder, server.port, times, bench.images, traffic, DEADLINE, timer=False
            )
            scores[tuning] = summarise(load.outcome(), bench.labels, DEADLINE)["in_time"]
    best = max(scores, key=lambda tuning: scores[tuning])
    tuned = {"batch": best[0], "wait": best[1], "version": version}
    tried = [[*tuning, score] for tuning, score in scores.items()]
    with opened(best) as server:
        bench.warm(server, traffic)
        name = f"{peer} {depth}"
        for record in bench.measure(name, server, traffic, points, depth, tuned=tuned, tried=tried):
            show(record)


def simulate(options: argparse.Namespace) -> None:
    """Predict the records of --out, and plan."""
    records = _serve_report.read_records(options.out)
    command = command_line()

    def keep(record: Record) -> None:
        with options.out.open("a") as out:
            out.write(json.dumps(record | {"command": command}) + "\n")

    print("predicted / measured")
    for record in _serve_plan.predictions(records, SEED):
        keep(record)
        values = ", ".join(
            f"{key.replace('_', ' ')} {record['predicted'][key]:.3f} / {record['measured'][key]:.3f}"
            for key in _serve_plan.COMPARED
        )
        place = f"{record['server']} {record['arrivals']} {record['load']:.2f} C"
        print(f"{place:>32} {1e3 * record['deadline']:.0f} ms: {values}; error "
              f"{100 * record['error']:.1f} %", flush=True)  # fmt: skip

    def show_plan(record: Record) -> None:
        keep(record)
        print(
            f"{record['replicas']:>5} replicas, {record['front']:>12}, {record['load']:.2f} C each: "
            f"{100 * record['in_time']:.2f} % in time, stage {record['mean_stage']:.3f}, "
            f"{100 * record['refused']:.2f} % refused",
            flush=True,
        )

    replicas = (1, 4) if options.quick else _serve_plan.REPLICAS
    _serve_plan.plans(records, replicas, show_plan)


# -- command line -----------------------------------------------------------------------------------
def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="(default: ours, policies)")
    parser.add_argument("--data", default="digits", help="of `anynest train`")
    parser.add_argument("--run", type=Path, help="a finished run's folder, or one to train into")
    parser.add_argument("--epochs", type=int, help="of that training (default: 3)")
    parser.add_argument("--limit", type=int, help="training images (default: 10000)")
    parser.add_argument("--seconds", type=float, help="of each load (default: 6)")
    parser.add_argument("--rounds", type=int, help="of ours and policies (default: 3)")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="the peers' environments")
    parser.add_argument(
        "--names",
        type=lambda text: text.split(","),
        default=list(_serve_peers.PACKAGES),
        help=f"of {','.join(_serve_peers.PACKAGES)}",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the part soak")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append records, as JSON lines")
    parser.add_argument("--simulate", action="store_true", help="predict --out's records, and plan")
    parser.add_argument("--read", type=Path, metavar="FILE", help="write its tables into --into")
    parser.add_argument("--into", type=Path, metavar="PAGE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="of --read's records")
    parser.add_argument("--quick", action="store_true", help="a small network and short runs")
    options = parser.parse_args(arguments)
    if options.simulate and options.out is None:
        parser.error("--simulate needs --out FILE, whose records it predicts")
    if options.read and not (options.into or options.picture):
        parser.error("--read needs --into PAGE or --picture FILE")
    if wrong := set(options.names) - set(_serve_peers.PACKAGES):
        parser.error(f"--names must be of {','.join(_serve_peers.PACKAGES)}, found {wrong.pop()}")
    options.part = options.part or ["ours", "policies"]
    options.epochs = options.epochs or (1 if options.quick else 3)
    options.limit = options.limit or (None if options.data == "digits" else 10_000)
    options.seconds = options.seconds or (1.0 if options.quick else 6.0)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.profile_seconds = 1.0 if options.quick else 8.0
    return options


def main() -> None:
    options = parse()
    if options.read:
        records = _serve_report.read_records(options.read)
        if options.into:
            _serve_report.write_into(options.into, records)
        if options.picture:
            _serve_report.draw(records, options.picture)
        return
    if options.simulate:
        simulate(options)
        return
    parts = {
        "ours": measure_ours,
        "policies": measure_policies,
        "peers": measure_peers,
        "soak": lambda bench: _serve_faults.soak(bench, options.minutes),
        "faults": _serve_faults.faults,
    }
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        bench = Bench(options, Path(folder))
        for part in options.part:
            parts[part](bench)


if __name__ == "__main__":
    main()
