"""What do self-distillation, averaged weights and norms without decay do to each exit's error?

    python benchmarks/recipes.py --data digits --out results/recipes/recipes-digits.jsonl
    python benchmarks/recipes.py --read results/recipes/recipes-digits.jsonl --into docs/recipes.md

Trains one nested network from the same weights on the same batches for each seed, by each recipe
(``anynest train --distill 0.5``, ``--ema 0.99``, ``--no-decay-norms``, all three, none). Every
finished run is one line of --out; what is there is not run again. ``--read`` writes a table of test
errors, and of the paired differences from the run without a recipe, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _pages import replace_between
from rich.console import Console

from anynest.experiments.claims.significance import interval as student
from anynest.experiments.sweep.job import revision
from anynest.store import write_whole
from anynest.training import TrainConfig, train

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "none": {},
    "--distill 0.5": {"method": {"distill": 0.5}},
    "--ema 0.99": {"optimizer": {"ema": 0.99}},
    "--no-decay-norms": {"optimizer": {"decay_norms": False}},
    "all three": {
        "method": {"distill": 0.5},
        "optimizer": {"ema": 0.99, "decay_norms": False},
    },
}


def config_of(args: argparse.Namespace, method: str, recipe: str, seed: int) -> TrainConfig:
    """The run's config: the paper's optimizer and schedule, shortened."""
    changes = RECIPES[recipe]
    return TrainConfig.from_json(
        {
            "model": {"name": args.model},
            "data": {
                "source": args.data,
                "limit": args.limit,
                "image_size": args.image_size,
                "batch_size": args.batch,
            },
            "method": {"name": method, **changes.get("method", {})},
            "optimizer": changes.get("optimizer", {}),
            "schedule": {"epochs": args.epochs},
            "run": {"seed": seed, "threads": 1, "device": "cpu", "gradient_stats": False},
        }
    )


def identity(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["method"], record["recipe"], record["seed"]


def read(path: Path) -> list[dict[str, Any]]:
    """The finished runs."""
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def settings_of(args: argparse.Namespace, method: str, recipe: str, seed: int) -> dict[str, Any]:
    """The settings of a run, wherever its images lie on this machine."""
    settings = config_of(args, method, recipe, seed).to_json()
    settings["data"]["source"] = Path(args.data).name
    return settings


def run(args: argparse.Namespace, method: str, recipe: str, seed: int) -> dict[str, Any]:
    """Train once; a record of the run."""
    config = config_of(args, method, recipe, seed)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        summary = train(config, folder).summary
    settings = settings_of(args, method, recipe, seed)
    return {
        "method": method,
        "recipe": recipe,
        "seed": seed,
        "data": summary["data"],
        "error": summary["test"]["error"],
        "train_loss": summary["train"]["loss"],
        "cpu_seconds": round(time.process_time() - started, 1),
        "settings": settings,
        "revision": revision(),
        "environment": summary["environment"],
        "command": shlex.join(["python", *sys.argv]).replace(args.data, settings["data"]["source"]),
    }


def interval(differences: list[float]) -> str:
    """``-0.31 [-0.52, -0.10]``: the mean and its 95 % interval by Student's t, if they differ."""
    mean, ends = statistics.mean(differences), student(differences)
    return f"{mean:+.2f}" + (f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else "")


def table(records: list[dict[str, Any]], method: str) -> list[str]:
    """Markdown: a row per recipe, and two columns per stage, error and difference from none."""
    found: dict[str, dict[int, list[float]]] = {recipe: {} for recipe in RECIPES}
    for record in records:
        if record["method"] == method:
            found[record["recipe"]][record["seed"]] = [100 * e for e in record["error"]]
    stages = range(len(next(iter(found["none"].values()))))
    heads = [f"stage {s + 1} | difference" for s in stages]
    lines = [f"| {method} | {' | '.join(heads)} |", "|---" * (1 + 2 * len(stages)) + "|"]
    for recipe, runs in found.items():
        if not runs:
            continue
        cells = []
        for s in stages:
            errors = [errors[s] for errors in runs.values()]
            spread = f" ({statistics.stdev(errors):.2f})" if len(errors) > 1 else ""
            cells.append(f"{statistics.mean(errors):.2f}{spread}")
            paired = [runs[k][s] - found["none"][k][s] for k in runs if k in found["none"]]
            cells.append("" if recipe == "none" else interval(paired))
        name = recipe if recipe.endswith(("none", "three")) else f"`{recipe}`"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def markdown(records: list[dict[str, Any]]) -> str:
    """The tables, with the command, data, hardware and versions that they belong to."""
    first, environment = records[0], records[0]["environment"]
    seeds = len({record["seed"] for record in records})
    minutes = sum(record["cpu_seconds"] for record in records) / 60
    lines = [
        f"    {first['command']}",
        "",
        f"{first['data']}: test error in %, mean (standard deviation) of {seeds} seeds; difference "
        "from no recipe, paired by seed, with its 95 % interval. "
        f"{environment['processor']}, one thread; Python {environment['python']}, torch "
        f"{environment['torch']}; {minutes:.0f} CPU minutes in all.",
    ]
    for method in dict.fromkeys(record["method"] for record in records):
        lines += ["", *table(records, method)]
    return "\n".join(lines) + "\n"


def write_into(page: Path, source: Path, text: str) -> None:
    """Put the tables between the page's marks for the results file."""
    try:
        replace_between(page, source.name, text)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="digits", help="as of anynest train")
    parser.add_argument("--out", type=Path, help="results, one line a run")
    parser.add_argument("--read", type=Path, help="print the tables of these results")
    parser.add_argument("--into", type=Path, help="with --read: a page to write them into")
    parser.add_argument("--model", default="width_nested_resnet10")
    parser.add_argument("--methods", nargs="+", default=["osgd", "sgd-sum"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--image-size", type=int)
    args = parser.parse_args()
    if (args.out is None) == (args.read is None):
        parser.error("give either --out or --read")
    return args


def main() -> None:
    args, console = arguments(), Console()
    if args.read:
        text = markdown(read(args.read))
        if args.into:
            write_into(args.into, args.read, text)
        else:
            print(text)
        return
    records = read(args.out)
    for record in records:
        if record["settings"] != settings_of(args, *identity(record)):
            raise SystemExit(
                f"{args.out} has runs with other settings, such as {' '.join(map(str, identity(record)))}"
                ": give the same options, or take another --out"
            )
    done = {identity(record) for record in records}
    wanted = [
        (method, recipe, seed)
        for seed in range(args.seeds)
        for method in args.methods
        for recipe in RECIPES
    ]
    left = [one for one in wanted if one not in done]
    console.print(f"{len(wanted)} runs, {len(wanted) - len(left)} done")
    started = time.monotonic()
    for number, one in enumerate(left, 1):
        records.append(run(args, *one))
        write_whole(args.out, "".join(json.dumps(r) + "\n" for r in records).encode())
        errors = ", ".join(f"{100 * e:.1f}" for e in records[-1]["error"])
        minutes = (time.monotonic() - started) / number * (len(left) - number) / 60
        console.print(
            f"{number} of {len(left)}: {one[0]}, {one[1]}, seed {one[2]}: {errors} %; "
            f"about {minutes:.0f} min left"
        )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
