"""``anynest demo``: SGD against OSGD on the digits, in a minute or two on two cores."""

import argparse
import json
import statistics
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anynest.cli.demo_picture import draw
from anynest.training import TrainConfig, train
from anynest.training.progress import Shown, clock
from anynest.training.run_folder import RunFolder

MODEL = "alternating_nested_sparse_resnet26"
METHODS = {
    "sgd-mean": "SGD (mean of losses)",
    "sgd-sum": "SGD (sum of losses)",
    "osgd": "OSGD",
}
EPOCHS = 20
SEEDS = 2


class Bar(Shown):
    """The live bar alone; a run tells its end in one line."""

    def epoch(self, line: dict[str, Any]) -> None:
        """Nothing: the table at the end says it."""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "demo",
        help="SGD against OSGD on the digits, in a minute or two",
        description="Train a small width-depth nested network on scikit-learn's digits with SGD "
        "and with OSGD, and print every stage's error side by side.",
        epilog="example: anynest demo --out runs/demo",
    )
    parser.add_argument("--out", metavar="FOLDER", help="empty or new (default: under runs/)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs a method: {SEEDS}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(call=run)


def demo_config(method: str, seed: int, epochs: int) -> TrainConfig:
    """One run of the demo."""
    return TrainConfig.from_json(
        {
            "model": {"name": MODEL},
            "data": {"source": "digits", "batch_size": 64},
            "method": {"name": method},
            "schedule": {"epochs": epochs, "shape": "cosine"},
            "optimizer": {"lr": 0.1},
            "run": {"seed": seed, "device": "cpu", "save_minutes": 0.0},
        }
    )


def run(arguments: argparse.Namespace) -> int:
    """Train every method with every seed, then print and draw."""
    console = Console(stderr=arguments.json, highlight=False, soft_wrap=True)
    folder = Path(arguments.out or f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}")
    RunFolder(folder).require_unused()
    epochs, seeds = arguments.epochs, arguments.seeds
    console.print(
        f"{MODEL} on scikit-learn's digits: {len(METHODS)} methods, {seeds} seeds, "
        f"{epochs} epochs each, into {folder}"
    )
    began = time.monotonic()
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for method in METHODS:
            config = demo_config(method, seed, epochs)
            result = train(config, folder / f"{method}-seed{seed}", reporter=Bar(console))
            results.setdefault(method, []).append(result.summary)
            console.print(f"  {method}, seed {seed}: {result.summary['training_seconds']:.1f} s")
    picture = folder / "demo.png"
    report = {
        "model": MODEL,
        "epochs": epochs,
        "seeds": seeds,
        "images": results["osgd"][0]["test"]["images"],
        "error": {m: [s["test"]["error"] for s in runs] for m, runs in results.items()},
        "seconds": time.monotonic() - began,
        "picture": str(picture),
        "environment": results["osgd"][0]["environment"],
    }
    draw(report, METHODS, folder, picture)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(console, report)
    return 0


def show(console: Console, report: dict[str, Any]) -> None:
    """The table, what it is worth, and the picture's path."""
    seeds = report["seeds"]
    table = Table(title=f"test error %, {report['images']} images, mean of {seeds} seeds (spread)")
    table.add_column("stage", justify="right")
    for title in METHODS.values():
        table.add_column(title, justify="right")
    stages = len(report["error"]["osgd"][0])
    for index in range(stages):
        cells = []
        for method in METHODS:
            errors = [100 * run[index] for run in report["error"][method]]
            spread = statistics.stdev(errors) if seeds > 1 else 0.0
            cells.append(f"{statistics.mean(errors):.1f} ({spread:.1f})")
        table.add_row(str(index + 1), *cells)
    console.print(table)
    console.print(
        f"A reduced run: small images, a small network, {report['epochs']} epochs. One image is "
        f"{100 / report['images']:.1f} %; differences of the size of the spread mean nothing. "
        "sgd-sum is the control: OSGD sums, where SGD as the paper prints it averages."
    )
    environment = report["environment"]
    console.print(
        f"{clock(report['seconds'])} on {environment['processor']}, "
        f"{environment['threads']} threads, torch {environment['torch']}"
    )
    console.print(f"picture: {report['picture']}")
