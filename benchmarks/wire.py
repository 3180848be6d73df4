"""Bytes on the wire per step: rows reduced before projection, beside reducing every gradient whole.

    python benchmarks/wire.py                                    # three networks, 2 and 4 ranks
    python benchmarks/wire.py --models width_nested_resnet10 --ranks 2 --json wire.json

Gloo ranks on this machine take steps on two samples each. ``heads-4`` is a plain network of four
tasks that share nearly all of it; nested networks' early tasks touch a part. Three numbers stand
side by side, all for one rank and one step, as medians over steps and then over ranks:

- reckoned: from the sizes alone. With W ranks, S losses, p_i entries that task i touches and P in
  all, ours is (sum_i p_i + P) (W-1)/W entries and whole gradients are 2 sum_i p_i (W-1)/W.
- counted: what ``Stats.sent_bytes`` adds up from the tensors given to the collectives.
- sockets: what the kernel says that the process's TCP sockets have sent (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _problems import Problem, many_heads, network
from _report import surroundings, write_json
from _wire import socket_bytes
from rich.console import Console
from rich.table import Table
from torch import nn

from anynest.multitask import OSGD, Combiner, WeightedSGD

MODELS = ["heads-4", "width_nested_resnet42", "depth_nested_sparse_resnet98"]
WHOLE = "OSGD, every gradient all-reduced"
Step = Callable[[], int]  # takes a step; the bytes counted


def problem_of(name: str) -> Problem:
    """Two samples and a network: ``heads-S`` or a registered one."""
    if name.startswith("heads-"):
        return many_heads(int(name.removeprefix("heads-")), batch=2)
    return network(name, batch=2, size=32)


def whole_gradients(problem: Problem, model: nn.Module) -> Step:
    """Every task's gradient all-reduced, to be combined in every rank alike: the plain way."""
    parameters = list(model.parameters())

    def step() -> int:
        losses = problem.losses(model)
        for i, loss in enumerate(losses):
            grads = torch.autograd.grad(
                loss, parameters, retain_graph=i + 1 < len(losses), allow_unused=True
            )
            dist.all_reduce(torch.cat([g.reshape(-1) for g in grads if g is not None]))
        return 0

    return step


def wrapped(problem: Problem, model: nn.Module) -> Step:
    """SGD on the sum of the losses under DistributedDataParallel."""
    data_parallel = nn.parallel.DistributedDataParallel(model)

    def step() -> int:
        torch.stack(problem.losses(data_parallel)).sum().backward()
        return 0

    return step


def combined(build: Callable[[], Combiner]) -> Callable[[Problem, nn.Module], Step]:
    def make(problem: Problem, model: nn.Module) -> Step:
        combiner = build()
        return lambda: combiner.backward(problem.losses(model), model.parameters()).sent_bytes

    return make


def variants() -> dict[str, tuple[str, Callable[..., Step]]]:
    """By name: how many entries are reckoned, and what makes the step."""
    group = dist.group.WORLD
    return {
        "OSGD": ("ours", combined(lambda: OSGD(group=group))),
        WHOLE: ("whole", whole_gradients),
        "OSGD(refresh=64), between": ("pass", combined(lambda: OSGD(refresh=64, group=group))),
        "SGD": ("pass", combined(lambda: WeightedSGD(group=group))),
        "SGD, DistributedDataParallel": ("pass", wrapped),
    }


def reckon(name: str) -> dict[str, int]:
    """Entries of a network's parameters: of each task's in sum, of all, and what follows."""
    problem = problem_of(name)
    model = problem.build(False)
    parameters = list(model.parameters())
    touched = [
        sum(
            p.numel()
            for p, g in zip(
                parameters,
                torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True),
                strict=True,
            )
            if g is not None
        )
        for loss in problem.losses(model)
    ]
    every = sum(p.numel() for p in parameters)
    rows = sum(touched)
    return {
        "losses": len(touched),
        "parameters": every,
        "touched": rows,
        "ours": rows + every,
        "whole": 2 * rows,
        "pass": 2 * every,
    }


def run_rank(rank: int, world: int, folder: str, name: str, steps: int) -> None:
    """One process: every variant in turn; writes what it counted."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    found: dict[str, Any] = {}
    for shown, (_, make) in variants().items():
        torch.manual_seed(0)
        problem = problem_of(name)
        step = make(problem, problem.build(False))
        for _ in range(2):  # what is settled once is settled
            step()
        counted, sockets = [], []
        for _ in range(steps):
            dist.barrier()
            before = socket_bytes()
            counted.append(step())
            after = socket_bytes()
            dist.barrier()
            sockets.append(None if before is None or after is None else after - before)
        found[shown] = {"counted": counted, "sockets": sockets}
        del step
    Path(folder, str(rank)).write_text(json.dumps(found))
    dist.destroy_process_group()


def measure(name: str, world: int, steps: int) -> dict[str, dict[str, float | None]]:
    """Medians over steps, then over ranks."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(world):
            child = os.fork()
            if not child:
                status = 1
                try:
                    run_rank(rank, world, folder, name, steps)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        ends = [os.waitpid(child, 0)[1] for child in children]
        if any(ends):
            raise SystemExit(f"a rank of {world} failed on {name}")
        ranks = [json.loads(Path(folder, str(rank)).read_text()) for rank in range(world)]
    result: dict[str, dict[str, float | None]] = {}
    for shown in ranks[0]:
        result[shown] = {}
        for kind in ("counted", "sockets"):
            values = [rank[shown][kind] for rank in ranks]
            known = [statistics.median(steps) for steps in values if None not in steps]
            result[shown][kind] = statistics.median(known) if known else None
    return result


def megabytes(count: float | None) -> str:
    return "-" if not count else f"{count / 2**20:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    report = {**surroundings("cpu"), "steps": arguments.steps, "results": []}
    for name in arguments.models:
        entries = reckon(name)
        for world in arguments.ranks:
            table = Table(
                title=f"{name}: S = {entries['losses']}, P = {entries['parameters']:,}, touched "
                f"{entries['touched']:,}; {world} ranks, MiB sent by each in a step"
            )
            for column in ("step", "reckoned", "counted", "sockets", "of all-reducing"):
                table.add_column(column, justify="left" if column == "step" else "right")
            found = measure(name, world, arguments.steps)
            # the names alone are of use here, and no group is
            kinds = {shown: kind for shown, (kind, _) in variants().items()}
            rows = []
            for shown, kind in kinds.items():
                reckoned = 4 * entries[kind] * (world - 1) / world
                row = {"step": shown, "reckoned": reckoned, **found[shown]}
                rows.append(row)
                whole = found[WHOLE]["sockets"]
                row["share"] = row["sockets"] / whole if whole and row["sockets"] else None
                cells = [megabytes(row[key]) for key in ("reckoned", "counted", "sockets")]
                table.add_row(shown, *cells, f"{row['share']:.3f}" if row["share"] else "-")
            console.print(table)
            report["results"].append({"model": name, "ranks": world, **entries, "rows": rows})
    if arguments.json:
        write_json(str(arguments.json), report)


if __name__ == "__main__":
    main()
