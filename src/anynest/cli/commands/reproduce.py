"""``anynest reproduce``: the paper's tables and figures, cell by cell."""

import argparse
import signal
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ...data import Dataset
from ...experiments.catalog.cell import Cell, network_name
from ...experiments.catalog.experiment import Experiment, Run, cells_of
from ...experiments.catalog.experiments import find_experiments
from ...experiments.catalog.protocols import PROTOCOLS, Protocol, find_protocol
from ...experiments.results.checks import read_checked
from ...experiments.results.evidence import Evidence
from ...experiments.results.figures import FIGURES, Figure
from ...experiments.results.records import Record
from ...experiments.results.tabulate import table_of
from ...experiments.sweep.estimate import estimate
from ...experiments.sweep.launcher import Launcher
from ...experiments.sweep.local_launcher import LocalLauncher
from ...experiments.sweep.sweep import Sweep, records_of
from ...experiments.sweep.timing import measure_missing, missing
from ...store.hardware import usable_cores
from ...training import ConfigError, Interrupted
from ...training.environment import find_device
from ...training.output.reporting import ProgressBar, clock, counted
from ..console import Console, print_json
from .train import absolute


@dataclass(frozen=True)
class Choice:
    """The runs that ``--only`` and ``--methods`` leave; empty ones leave all.

    Args:
        designs: Names of network designs.
        methods: Methods, with all their variants, or single variants such as ``osgd+lr=0.2``.
    """

    designs: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    def takes(self, run: Run) -> bool:
        """Whether a run is left."""
        named = {run.variant, run.variant.partition("+")[0]}
        return (not self.designs or run.design in self.designs) and (
            not self.methods or bool(named.intersection(self.methods))
        )

    def check(self, experiments: list[Experiment], runs: list[Run]) -> None:
        """ConfigError for a name that no run has, or an experiment that compares all networks."""
        variants = [run.variant for run in runs]
        methods = [*dict.fromkeys(variant.partition("+")[0] for variant in variants)]
        later = [e for e in experiments if e.next_runs is not None]
        designs = [*(run.design for run in runs), *(d for e in later for d in e.next_designs)]
        for flag, given, known in (
            ("--only", self.designs, [*dict.fromkeys(designs)]),
            ("--methods", self.methods, [*methods, *variants]),
        ):
            for name in given:
                follows = later and flag == "--methods" and name.partition("+")[0] in methods
                if name not in known and not follows:
                    names = ", ".join(known if flag == "--only" else methods)
                    raise ConfigError(f"{flag} must be among {names}, found {name!r}")
        if self != Choice() and (whole := [e.name for e in experiments if e.measured]):
            raise ConfigError(
                f"--only and --methods must leave {whole[0]} whole, which compares all its "
                "networks: leave them out, or name other experiments"
            )


@dataclass(frozen=True)
class Part:
    """The experiments that one data set serves, and their sweep."""

    experiments: list[Experiment]
    sweep: Sweep
    data: Dataset
    choice: Choice = Choice()


def run(arguments: argparse.Namespace) -> int:
    """Train what is left, and print the tables."""
    console = Console(stderr=arguments.json)
    protocol = find_protocol(arguments.protocol)
    parts = make_parts(arguments, protocol, console)
    if arguments.dry_run:
        return plan(arguments, protocol, parts, console)
    report: dict[str, Any] = {}
    for part in parts:
        try:
            lines = train_all(part, protocol, arguments)
        except (KeyboardInterrupt, Interrupted) as error:
            left = len(part.sweep.cells) - len(records_of(part.sweep, part.sweep.done()))
            raise Interrupted(
                f"stopped with {counted(left, 'cell')} left; the same command goes on",
                signal.SIGINT,
            ) from error
        for experiment in part.experiments:
            report[experiment.name] = show(experiment, part, protocol, arguments, console, lines)
    if arguments.json:
        print_json(report)
    else:
        console.print(f"results: {parts[0].sweep.results}")
    return 0


def train_all(part: Part, protocol: Protocol, arguments: argparse.Namespace) -> dict[str, Record]:
    """Every cell's line by its key, those too that only the results of others ask for."""
    sweep = part.sweep
    while True:
        lines = sweep.run(make_launcher(arguments))
        sweep.cells = plan_cells(part.experiments, protocol, arguments.seeds, lines, part.choice)
        if all(cell.key in lines for cell in sweep.cells):
            return lines


def show(
    experiment: Experiment,
    part: Part,
    protocol: Protocol,
    arguments: argparse.Namespace,
    console: Console,
    lines: dict[str, Record],
) -> dict[str, Any]:
    """Print an experiment (unless JSON is wanted), measuring first what it needs; plain values."""
    sweep = part.sweep
    if experiment.measured:
        measure_missing(protocol, arguments.seeds, sweep.out, part.data, sweep.results, sweep.say)
    table = table_of(experiment, protocol, arguments.seeds, list(lines.values()))
    result = table.to_json()
    evidence = Evidence.of(read_checked(sweep.results), protocol, part.data.label)
    draw = FIGURES.get(experiment.name)
    figures = draw(evidence) if draw else []
    if not arguments.json:
        if not figures:
            table.show(console)
        for figure in figures:
            console.print(figure_table(figure, protocol, part.data.label))
    return {**result, "figures": [figure.to_json() for figure in figures]}


def figure_table(figure: Figure, protocol: Protocol, label: str) -> Table:
    """A figure's numbers: a row a point."""
    table = Table(
        title=f"{figure.name}, {figure.title}: test error %, {label}, protocol {protocol.name}"
    )
    table.add_column("series")
    table.add_column(figure.x, justify="right")
    table.add_column("error %", justify="right")
    for series in figure.series:
        for spot in series.spots:
            spread = "" if spot.deviation is None else f" ({spot.deviation:.1f})"
            x = f"{spot.x:,.0f}" if figure.name.startswith("fig9") and spot.x else spot.name
            table.add_row(series.name, x, f"{spot.mean:.1f}{spread}")
        table.add_section()
    return table


def make_parts(arguments: argparse.Namespace, protocol: Protocol, console: Console) -> list[Part]:
    """One for each family of networks that is asked for and has images."""
    wanted = list(dict.fromkeys(e for name in arguments.what for e in find_experiments(name)))
    sources = {"cifar": arguments.data, "imagenet": arguments.data}
    if len({e.family for e in wanted}) > 1:
        sources["imagenet"] = arguments.imagenet
    elif arguments.imagenet:
        raise ConfigError("--imagenet is for table3 beside others: alone, give it as --data")
    out = Path(arguments.out)
    choice = Choice(tuple(arguments.only or ()), tuple(arguments.methods or ()))
    choice.check(wanted, [run for e in wanted for run in e.wanted(protocol, [])])
    parts = []
    for family in ("cifar", "imagenet"):
        experiments = [e for e in wanted if e.family == family]
        if not experiments:
            continue
        if sources[family] is None:
            names = ", ".join(e.name for e in experiments)
            console.print(f"left out without --imagenet FOLDER: {names}")
            continue
        cells = plan_cells(experiments, protocol, arguments.seeds, {})
        if not cells:
            raise ConfigError(without_cells(experiments, protocol))
        follow = any(e.next_runs for e in experiments)
        if not follow and not plan_cells(experiments, protocol, arguments.seeds, {}, choice):
            continue  # of another family than the networks that --only leaves
        source = absolute(sources[family])
        machine = machine_of(arguments)
        data = cells[0].config(source, machine).data.load()
        results = Path(arguments.results or out / f"{protocol.name}.jsonl")

        measured = any(e.measured for e in experiments)
        left = missing(protocol, arguments.seeds, data.label, results) if measured else []
        wanted_weights = frozenset(cell.key for one in left for cell in one.cells)
        sweep = Sweep(
            cells, out, results, source, data.label, machine, wanted_weights, console.print
        )
        sweep.cells = plan_cells(experiments, protocol, arguments.seeds, sweep.recorded(), choice)
        if sweep.cells:
            parts.append(Part(experiments, sweep, data, choice))
    if not parts:
        raise ConfigError("--only and --methods must leave some cells, found none: change one")
    return parts


def machine_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of the section ``run`` that are no cell's own."""
    options = dict(arguments.run_option)
    for key in ("seed", "device"):
        if key in options:
            flag = "--seeds" if key == "seed" else "--device"
            raise ConfigError(f"--run-option {key}=... has a flag of its own: {flag}")
    return {"device": str(find_device(arguments.device)), "threads": 1, **options}


def plan_cells(
    experiments: list[Experiment],
    protocol: Protocol,
    seeds: int,
    lines: dict[str, Record],
    choice: Choice = Choice(),
) -> list[Cell]:
    """Each different cell of the experiments once, as far as the results by key say."""
    runs = [run for e in experiments for run in e.wanted(protocol, list(lines.values()))]
    return cells_of(filter(choice.takes, runs), protocol, seeds)


def without_cells(experiments: list[Experiment], protocol: Protocol) -> str:
    """What is wrong where a protocol has nothing to train, and which ones have."""
    names = ", ".join(e.name for e in experiments)
    before = [e.waits_for for e in experiments if e.waits_for]
    if before and plan_cells(find_experiments(before[0]), protocol, 1, {}):
        return (
            f"the cells of {names} follow from the results of {before[0]}, so both must be named: "
            f"anynest reproduce {before[0]} {names} ..."
        )
    others = [name for name, other in PROTOCOLS.items() if plan_cells(experiments, other, 1, {})]
    return (
        f"--protocol must be one that has cells of {names}, found {protocol.name}: take "
        f"{' or '.join(others)}"
    )


def make_launcher(arguments: argparse.Namespace) -> Launcher:
    """What runs the cells."""
    if arguments.launcher == "ray":
        from ...experiments.sweep.ray_launcher import RayLauncher

        return RayLauncher(arguments.jobs, arguments.ray_address)
    return LocalLauncher(arguments.jobs or default_jobs(arguments.device))


def default_jobs(device: str) -> int:
    """One a core; one on an accelerator, which a single cell may fill."""
    return usable_cores() if find_device(device).type == "cpu" else 1


def plan(
    arguments: argparse.Namespace, protocol: Protocol, parts: list[Part], console: Console
) -> int:
    """List the runs, and how long what is left may take."""
    listed: list[dict[str, Any]] = []
    for part in parts:
        sweep, data = part.sweep, part.data
        lines = sweep.done()
        sweep.cells = plan_cells(part.experiments, protocol, arguments.seeds, lines, part.choice)
        left = [cell for cell in sweep.cells if cell.key not in lines]
        with ProgressBar(console, "measuring training steps", plain=10.0) as bar:
            seconds = estimate(left, list(lines.values()), data, sweep.machine, bar.report)
        for cell in sweep.cells:
            listed.append(row_of(cell, sweep, data.label, lines.get(cell.key), seconds))
    jobs = arguments.jobs or default_jobs(arguments.device)
    total = sum(row["seconds"] for row in listed if not row["done"]) / jobs
    if arguments.json:
        print_json({"cells": listed, "jobs": jobs, "seconds_left": total})
        return 0
    show_plan(console, protocol, listed)
    left_count = sum(not row["done"] for row in listed)
    console.print(
        f"{counted(len(listed), 'cell')}, {left_count} to train: about {clock(total)} with "
        f"{counted(jobs, 'job')} at once (training alone, from finished cells or measured steps)"
    )
    return 0


def row_of(
    cell: Cell, sweep: Sweep, label: str, line: Record | None, seconds: dict[str, float]
) -> dict[str, Any]:
    """A cell as the dry run lists it."""
    return {
        "cell": cell.name,
        "network": network_name(cell.design, cell.independent),
        "variant": cell.variant,
        "seed": cell.seed,
        "key": cell.key,
        "folder": str(cell.folder(sweep.out)),
        "data": label,
        "done": line is not None,
        "seconds": line.get("seconds") if line else seconds[cell.key],
    }


def show_plan(console: Console, protocol: Protocol, listed: list[dict[str, Any]]) -> None:
    """A table with a row for each network and method."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in listed:
        runs.setdefault((row["network"], row["variant"]), []).append(row)
    table = Table(title=f"{protocol.name}: {protocol.title}")
    for head in ("network", "method"):
        table.add_column(head)
    for head in ("seeds", "done", "time each", "time left"):
        table.add_column(head, justify="right")
    for (network, variant), rows in runs.items():
        known = [row["seconds"] for row in rows if row["seconds"] is not None]
        left = [row["seconds"] for row in rows if not row["done"]]
        table.add_row(
            network,
            variant,
            str(len(rows)),
            str(len(rows) - len(left)),
            clock(statistics.median(known)) if known else "-",
            clock(sum(left)) if left else "",
        )
    console.print(table)
