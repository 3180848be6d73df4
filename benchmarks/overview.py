"""The README's picture: one nested network's answers, beside the plain networks of its sizes.

    python benchmarks/overview.py --out results/digits/overview.jsonl    # trains, and draws
    python benchmarks/overview.py --draw docs/images                     # draws what is committed

Trains the network of ``anynest demo`` on scikit-learn's digits by OSGD, and the plain network of
each stage's size, with several seeds. A line of --out is one trained network; what is there is not
trained again, and ``--demo FOLDER`` takes the first seed's from a demo that has run. The record of
the first nested network also has the test picture whose answer changes most from stage to stage.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ticker import FuncFormatter, NullLocator

from anynest import create_model
from anynest.cli.commands.demo.command import GROWTH, NESTED, SIDE, example
from anynest.cli.commands.demo.compare import MODEL, demo_config
from anynest.cli.commands.demo.picture import NESTED as ORANGE
from anynest.cli.commands.demo.picture import PLAIN, draw_answer
from anynest.data import load
from anynest.experiments.sweep.job import revision
from anynest.store.figures import new_figure, save_figure, stage_colors
from anynest.training import train

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "digits" / "overview.jsonl"
Record = dict[str, Any]
INK = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
THEMES: dict[str, dict[str, str]] = {
    "light": dict.fromkeys(INK, "#1f2328"),
    "dark": dict.fromkeys(INK, "#d5dbe1")
    | {"grid.color": "#6e7681"}
    | dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "#0d1117"),
}


def read(path: Path) -> list[Record]:
    """The finished runs."""
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def wanted(seeds: int, stages: int = len(GROWTH)) -> list[tuple[int | None, int]]:
    """Plain network's stage (None: the nested network) and seed of every run."""
    networks = [None, *range(1, stages + 1)]
    return [(plain, seed) for seed in range(seeds) for plain in networks]


def run(plain: int | None, seed: int, epochs: int) -> Record:
    """Train once; a record of the run."""
    method = "osgd" if plain is None else "sgd-sum"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(demo_config(method, seed, epochs, plain, SIDE, GROWTH), folder / folder_of(plain))
        return record_of(folder, plain, seed)


def folder_of(plain: int | None) -> str:
    """Where the demo keeps a network."""
    return NESTED if plain is None else f"plain-{plain}"


def record_of(folder: Path, plain: int | None, seed: int) -> Record:
    """A record of a trained network in a demo's folder."""
    run_folder = folder / folder_of(plain)
    summary = json.loads((run_folder / "summary.json").read_text())
    model = create_model(MODEL, growth=GROWTH, independent=plain, in_channels=1)
    shown = None
    if (plain, seed) == (None, 0):
        test = load("digits", image_size=SIDE).test
        shown = example(folder, test.images, test.labels.tolist())
        del shown["file"]
        for stage in shown["stages"]:
            del stage["elapsed"]
    return {
        "plain": plain,
        "seed": seed,
        "data": summary["data"],
        "error": summary["test"]["error"],
        "images": summary["test"]["images"],
        "multiply_adds": [cost.multiply_adds for cost in model.cost(SIDE)],
        "example": shown,
        "settings": json.loads((run_folder / "config.json").read_text()),
        "revision": revision(),
        "environment": summary["environment"],
        "command": shlex.join(["python", *sys.argv]),
    }


def table(records: Sequence[Record]) -> list[str]:
    """Markdown: test errors in %, mean and standard deviation over the seeds, a row per network."""
    stages = range(1, len(GROWTH) + 1)
    rows = [
        ["network", *(f"stage {stage}" for stage in stages)],
        ["---", *("---:" for _ in stages)],
    ]
    _, accuracy, spread = curve(records, None)
    rows.append(["nested, one network", *map(cell, accuracy, spread)])
    alone = [curve(records, stage) for stage in stages]
    rows.append(["plain, one per size", *(cell(y[0], s[0]) for _, y, s in alone)])
    work = curve(records, None)[0]
    rows.append(["million multiply-adds, nested", *(f"{x:.3g}" for x in work)])
    rows.append(["million multiply-adds, plain", *(f"{x[0]:.3g}" for x, _, _ in alone)])
    return [f"| {' | '.join(row)} |" for row in rows]


def cell(accuracy: float, spread: float) -> str:
    """``2.2 (0.4)``, or ``2.2`` of one run."""
    return f"{100 - accuracy:.1f}" + (f" ({spread:.1f})" if spread else "")


# -- the picture ------------------------------------------------------------------------------------
def curve(records: Sequence[Record], plain: int | None) -> tuple[list[float], ...]:
    """Multiply-adds in millions, mean accuracy in %, and its standard deviation, by stage."""
    found = [r for r in records if r["plain"] == plain]
    shares = list(zip(*(r["error"] for r in found), strict=True))
    accuracy = [100 - 100 * statistics.mean(column) for column in shares]
    spread = [100 * statistics.stdev(column) if len(column) > 1 else 0.0 for column in shares]
    return [count / 1e6 for count in found[0]["multiply_adds"]], accuracy, spread


def theme_colors(theme: str, stages: int) -> list[Any]:
    """One color per stage, bright on a dark ground."""
    if theme == "light":
        return stage_colors(stages)
    return [matplotlib.colormaps["plasma"](0.4 + 0.42 * i / (stages - 1)) for i in range(stages)]


def count(value: float) -> str:
    """A number of multiply-adds.

    >>> count(51_840), count(374_000), count(12_400_000)
    ('52 k', '370 k', '12 M')
    """
    unit, name = (1e6, "M") if value >= 1e6 else (1e3, "k")
    return f"{float(f'{value / unit:.2g}'):g} {name}"


def draw_accuracy(axes: Any, records: Sequence[Record], colors: list[Any]) -> None:
    """Accuracy against compute: the nested network's stages on a line, plain networks alone."""
    seeds = len({r["seed"] for r in records})
    runs = f"mean of {seeds} seeds" if seeds > 1 else "one run"
    work, accuracy, spread = curve(records, None)
    axes.plot(
        work, accuracy, color=ORANGE, lw=3, zorder=2, label="one nested network, trained once"
    )
    if seeds > 1:
        axes.errorbar(work, accuracy, spread, fmt="none", ecolor=ORANGE, capsize=3, zorder=2)
    axes.scatter(work, accuracy, s=90, c=colors, ec="white", lw=1, zorder=3)
    for stage, (x, y) in enumerate(zip(work, accuracy, strict=True), start=1):
        axes.annotate(f"stage {stage}\n{y:.1f} %", (x, y), (9, -9), textcoords="offset points",
                      va="top", fontsize="small", weight="bold")  # fmt: skip
    alone = [curve(records, stage + 1) for stage in range(len(work))]
    x, y, bars = ([column[0] for column in part] for part in zip(*alone, strict=True))
    axes.errorbar(x, y, bars if seeds > 1 else None, fmt="s", color=PLAIN, mfc="none", ms=8,
                  mew=1.5, capsize=3, label=f"{len(x)} plain networks of its stages' sizes")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(work[0] / 1.5, work[-1] * 2.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(1e6 * value)))
    axes.xaxis.set_minor_locator(NullLocator())
    low = min(*accuracy, *y)
    axes.set_ylim(low - 0.35 * (100 - low), 100 + 0.06 * (100 - low))
    axes.set_xlabel("multiply-adds per picture until the answer")
    axes.set_ylabel(f"accuracy (%) of {records[0]['images']} test pictures")
    axes.set_title(f"the answer improves with compute ({runs})", fontsize="medium")
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize="small", loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write ``overview-light.png`` and ``overview-dark.png``; returns their paths."""
    (shown,) = (r for r in records if r["example"])
    below = [count(work) for work in shown["multiply_adds"]]
    paths = []
    for theme, colors in THEMES.items():
        with matplotlib.rc_context(colors):
            figure = new_figure(10.0, 3.9)
            left, right = figure.subfigures(1, 2, width_ratios=[1.2, 1])
            of_stages = theme_colors(theme, len(below))
            draw_accuracy(left.subplots(), records, of_stages)
            draw_answer(right, shown["example"], below, of_stages)
            paths.append(folder / f"overview-{theme}.png")
            save_figure(figure, paths[-1])
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing of --out, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="train, and add the records to this file")
    parser.add_argument("--draw", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--demo", type=Path, help="folder of a finished demo, for the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args(argv)
    path = args.out or RESULTS
    if args.out:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = {(r["plain"], r["seed"]) for r in read(path)}
        for plain, seed in wanted(args.seeds):
            if (plain, seed) not in done:
                if args.demo and seed == 0:
                    record = record_of(args.demo, plain, seed)
                else:
                    record = run(plain, seed, args.epochs)
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                errors = ", ".join(f"{100 * error:.1f}" for error in record["error"])
                print(f"{folder_of(plain)}, seed {seed}: error {errors} %", flush=True)
    records = read(path)
    print("\n".join(table(records)))
    for written in draw(records, args.draw):
        print(written)


if __name__ == "__main__":
    main()
