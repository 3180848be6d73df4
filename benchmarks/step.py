"""Whole training steps of many losses: ours, SGD's, a naive one, and other libraries'.

    python benchmarks/step.py                                  # three full-size networks
    python benchmarks/step.py --models resnet20 --rounds 15
    python benchmarks/step.py --sweep tasks parameters --plots docs/images --json sweeps.json
    python benchmarks/step.py --read sweeps.json --into docs/steps.md
    python benchmarks/step.py --models transformer-256-3-64 lora-256-3-64 --batch 4 --rounds 5
    python benchmarks/step.py --variants sgd exact --models width_nested_resnet10 --batch 32

A step is zero_grad, forward, losses, one combined gradient and SGD's update with momentum. Each
round takes every variant once, in an order rotated from round to round, in one process; ratios to
SGD are taken within a round. Medians stand with their quartiles. Beneath a table stand the floor
(benchmarks/_probes.py says what it is), measured in the same rounds, and the share of the step that
is neither forward, backward nor optimizer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from _markdown import markdown, write_into
from _memory import peak_bytes, row_bytes
from _probes import Alone, Bandwidth, Combination, Floor, floor_by_cost
from _problems import Problem, network
from _report import show, surroundings, write_json
from _rounds import interleave, ratios, spread
from _sweeps import SWEEPS, draw, problems
from _variants import VARIANTS, Left, Trainer
from rich.console import Console

from anynest.nets import AnytimeNetwork

MODELS = ["width_nested_resnet42", "depth_nested_sparse_resnet98", "cascade_sparse_resnet98"]


def build(problem: Problem, names: list[str], console: Console) -> dict[str, Trainer]:
    """The variants that can be had here; each is tried once."""
    built: dict[str, Trainer] = {}
    for name in names:
        shown, make = VARIANTS[name]
        if name == "naive-plain" and not problem.has_plain:
            continue
        try:
            trainer = make(problem)
            trainer.step()
        except (Left, RuntimeError) as error:
            console.print(
                f"left out: {shown}: {str(error).splitlines()[0]}", highlight=False, soft_wrap=True
            )
        else:
            built[name] = trainer
    return built


def time_problem(
    problem: Problem,
    names: list[str],
    rounds: int,
    console: Console,
    probes: bool = True,
    memory: bool = True,
) -> dict[str, Any]:
    """One table: the variants' times and, with ``probes``, what the floor is."""
    trainers = build(problem, names, console)
    entries: dict[str, Any] = {name: trainer.seconds for name, trainer in trainers.items()}
    if probes:
        entries["floor"] = Floor(problem).measure
        entries["combination"] = Combination(problem).measure
        entries["bandwidth"] = Bandwidth(problem).measure
        if isinstance(trainers["sgd"].model, AnytimeNetwork):
            entries["alone"] = Alone(problem).measure
    rounds = enough(trainers["sgd"], rounds)
    found = interleave(entries, rounds)
    model = trainers["sgd"].model
    trained = trainers["sgd"].parameters
    result: dict[str, Any] = {
        "problem": problem.name,
        "parameters": sum(p.numel() for p in trained),
        "stages": len(problem.losses(model)),
        "batch": len(problem.x),
        "input": list(problem.x.shape[1:]),
        "rounds": rounds,
        "variants": [
            {
                "variant": name,
                "shown": VARIANTS[name][0],
                "seconds": spread(found[name]),
                "ratio": spread(ratios(found[name], found["sgd"])),
            }
            for name in trainers
        ],
    }
    if memory:
        result["memory"] = add_memory(problem, result["variants"])
    if probes:
        result["floor"] = floor_of(problem, found)
        if "exact" in found:
            part = [round_["combination"] for round_ in found["combination"]]
            rows, update = row_bytes(problem)
            least = [(2 * rows + update) / rate for rate in found["bandwidth"]]
            result["combination"] = {
                "seconds": spread(part),
                "share": spread(ratios(part, found["exact"])),
                "bytes": 2 * rows + update,
                "bandwidth": spread(found["bandwidth"]),
                "of_bandwidth": spread(ratios(least, part)),
            }
    return result


def enough(trainer: Trainer, rounds: int) -> int:
    """More rounds, up to ten times as many, where a step is too short to be timed well alone."""
    took = min(trainer.seconds() for _ in range(3))
    return min(10 * rounds, max(rounds, round(rounds * 0.05 / took)))


def add_memory(problem: Problem, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Give each variant its peak; the bound for an exact method beside SGD's."""
    peaks = {}
    for row in rows:
        row["peak_bytes"] = peaks[row["variant"]] = peak_bytes(problem, VARIANTS[row["variant"]][1])
    rows_take, _ = row_bytes(problem)
    bound = 1.05 * (peaks["sgd"] + rows_take)
    found = {"sgd": peaks["sgd"], "rows": rows_take, "bound": bound}
    return {**found, "exact": peaks["exact"]} if "exact" in peaks else found


def floor_of(problem: Problem, found: dict[str, list[Any]]) -> dict[str, Any]:
    """The floor in three ways, and how far above it the exact step is."""
    rounds = found["floor"]
    floors = [one["floor"] for one in rounds]
    stages = range(len(rounds[0]["b"]))
    result: dict[str, Any] = {
        "f": spread([one["f"] for one in rounds]),
        "b": [spread([one["b"][i] for one in rounds]) for i in stages],
        "floor": spread(floors),
        "by_cost": floor_by_cost(problem),
    }
    if "alone" in found:
        alone = found["alone"]
        result["alone_b"] = [spread([one["b"][i] for one in alone]) for i in stages]
        pairs = zip(rounds, alone, strict=True)
        result["alone"] = spread(
            [
                (one["f"] + sum(other["b"][:-1]) + one["b"][-1]) / (one["f"] + one["b"][-1])
                for one, other in pairs
            ]
        )
    if "exact" in found:
        over = ratios(ratios(found["exact"], found["sgd"]), floors)
        result["exact"] = spread(over)
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="NAME",
        help="registered names, resnet20, transformer-WIDTH-TASKS-TOKENS, lora-WIDTH-TASKS-TOKENS",
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument(
        "--sweep", nargs="+", default=[], choices=SWEEPS, help="plain networks, instead of --models"
    )
    parser.add_argument("--plots", metavar="FOLDER", help="where to draw the sweeps' curves")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--read", metavar="FILE", help="show that JSON; measure nothing")
    parser.add_argument("--markdown", action="store_true", help="print the tables for a document")
    parser.add_argument("--into", metavar="PAGE", help="put them between the page's marks")
    args = parser.parse_args()
    if "sgd" not in args.variants:
        args.variants.insert(0, "sgd")  # what the ratios are of
    return args


def measured(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The report of a run, written as it goes."""
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {**surroundings(args.device), "results": []}

    def timed(problem: Problem, **more: str) -> dict[str, Any]:
        memory = not args.no_memory
        result = time_problem(problem, args.variants, args.rounds, console, memory=memory)
        result |= more
        show(result, console)
        report["results"].append(result)
        if args.json:  # what is done is kept, whatever becomes of the rest
            write_json(args.json, report)
        return result

    for name in [] if args.sweep else args.models:
        timed(network(name, args.batch, args.image_size, args.device, args.channels_last))
    for sweep in args.sweep:
        for problem in problems(sweep, args.batch, args.device):
            timed(problem, sweep=sweep)
    return report


def main() -> None:
    args = arguments()
    console = Console(stderr=args.markdown, width=None if sys.stdout.isatty() else 110)
    if args.read:
        report = json.loads(Path(args.read).read_text(encoding="utf-8"))
        for result in report["results"]:
            show(result, console)
    else:
        report = measured(args, console)
    for sweep in SWEEPS if args.plots else ():
        results = [result for result in report["results"] if result.get("sweep") == sweep]
        if results:
            path = Path(args.plots).resolve() / f"step-{sweep}.png"
            draw(sweep, results, path)
            console.print(f"drew {path}", highlight=False, soft_wrap=True)
    if args.markdown:
        print(markdown(report))
    if args.into:
        write_into(Path(args.into).resolve(), report)


if __name__ == "__main__":
    main()
