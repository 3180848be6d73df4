"""Tables and the picture of the study in ``multitask.py``, from its records alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _refresh_report import interval, spread, table

from anynest.store import write_whole
from anynest.store.figures import new_figure, save_figure

Record = dict[str, Any]
TASKS = {"tasks": ("class", "parity", "denoising"), "exits": ("exit 1", "exit 2", "exit 3")}
TRIVIAL = {"tasks": (90.0, 50.0, 100.0), "exits": (90.0, 90.0, 90.0)}
SHOWN = {
    "sum": "sum of the losses",
    "mean": "mean of the losses",
    "osgd-forward": "OSGD, {first} first",
    "osgd-backward": "OSGD, {last} first",
    "metric-forward": "OSGD in the metric, {first} first",
    "metric-backward": "OSGD in the metric, {last} first",
    "upgrad": "TorchJD UPGrad",
    "pcgrad": "TorchJD PCGrad",
}


def read_records(path: Path) -> list[Record]:
    """The finished runs; a last line that was cut off is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        write_whole(path, text.encode())
    return [json.loads(line) for line in text.splitlines()]


def score(record: Record, problem: str) -> float:
    """Mean over tasks of the validation error relative to that of a constant prediction."""
    if record["diverged"]:
        return math.inf
    return statistics.fmean(
        e / t for e, t in zip(record["validation"], TRIVIAL[problem], strict=True)
    )


def best_rate(records: Sequence[Record], settings: dict[str, Any]) -> float:
    """The learning rate with the lowest mean validation error."""
    found: dict[float, list[float]] = {}
    for record in records:
        if record["kind"] == "tune" and record["settings"] == settings:
            found.setdefault(record["lr"], []).append(score(record, settings["problem"]))
    if not found:
        raise SystemExit(
            f"{settings['method']} must be tuned before it is run, found no record: run the part"
            " of its problem and optimizer first"
        )
    return min(found, key=lambda lr: statistics.fmean(found[lr]))


def shown(method: str, problem: str) -> str:
    names = TASKS[problem]
    return SHOWN[method].format(first=names[0], last=names[-1])


def by_method(records: Sequence[Record], kind: str, problem: str, optimizer: str) -> Any:
    """Records by method, then by seed."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        settings = record["settings"]
        if (record["kind"], settings["problem"], settings["optimizer"]) == (
            kind,
            problem,
            optimizer,
        ):
            found.setdefault(settings["method"], {})[record["seed"]] = record
    return {method: found[method] for method in SHOWN if method in found}


def grid(records: Sequence[Record], problem: str, optimizer: str) -> list[float]:
    return sorted(
        {
            r["lr"]
            for r in records
            if r["kind"] == "tune"
            and (r["settings"]["problem"], r["settings"]["optimizer"]) == (problem, optimizer)
        }
    )


def errors_table(records: Sequence[Record], problem: str, optimizer: str) -> str:
    """Test errors in percent, and the tuned learning rate."""
    runs, rates = (
        by_method(records, "test", problem, optimizer),
        grid(records, problem, optimizer),
    )
    rows = []
    for method, by_seed in runs.items():
        lr = next(iter(by_seed.values()))["lr"]
        edge = " (edge)" if lr in (rates[0], rates[-1]) else ""
        good = [r for _, r in sorted(by_seed.items()) if not r["diverged"]]
        columns = [spread([r["test"][i] for r in good]) for i in range(3)]
        whole = spread([100 * relative(r, problem) for r in good])
        rows.append(
            [
                shown(method, problem),
                f"{lr:g}{edge}",
                *columns,
                whole,
                f"{len(good)}/{len(by_seed)}",
            ]
        )
    return table(["method", "rate", *TASKS[problem], "mean, relative", "n"], rows)


def relative(record: Record, problem: str) -> float:
    """Mean over tasks of the test error relative to that of a constant prediction."""
    return statistics.fmean(e / t for e, t in zip(record["test"], TRIVIAL[problem], strict=True))


def paired_table(
    records: Sequence[Record], problem: str, optimizer: str, pairs: Sequence[tuple[str, str]]
) -> str:
    """Differences by seed, with 95 % intervals."""
    runs = by_method(records, "test", problem, optimizer)
    rows = []
    for method, base in pairs:
        if method not in runs or base not in runs:
            continue
        both = [
            (runs[method][seed], runs[base][seed])
            for seed in sorted(set(runs[method]) & set(runs[base]))
            if not (runs[method][seed]["diverged"] or runs[base][seed]["diverged"])
        ]
        columns = [interval([a["test"][i] - b["test"][i] for a, b in both]) for i in range(3)]
        whole = interval([100 * (relative(a, problem) - relative(b, problem)) for a, b in both])
        name = f"{shown(method, problem)}, minus {shown(base, problem)}"
        rows.append([name, *columns, whole])
    return table(["difference", *TASKS[problem], "mean, relative"], rows)


def cosine_table(records: Sequence[Record], problem: str, optimizer: str) -> str:
    """Mean cosines between the tasks' gradients over the training."""
    names = TASKS[problem]
    rows = []
    for method, by_seed in by_method(records, "test", problem, optimizer).items():
        good = [r["cosines"] for r in by_seed.values() if not r["diverged"]]
        columns = [spread([c[i][j] for c in good]) for i, j in ((0, 1), (0, 2), (1, 2))]
        rows.append([shown(method, problem), *columns])
    heads = [f"{names[i]}, {names[j]}" for i, j in ((0, 1), (0, 2), (1, 2))]
    return table(["method", *heads], rows)


SPANS = ((0, 1), (1, 5), (5, 20), (20, 10_000))


def promise_table(records: Sequence[Record], problem: str, which: str) -> str:
    """Median and the 10 and 90 % quantiles over steps and seeds of the part that is kept."""
    rows = []
    for task in (0, 2):
        chosen = [r for r in records if r["kind"] == "promise" and r["task"] == task]
        for method, by_seed in by_method(chosen, "promise", problem, "adamw").items():
            columns = []
            for begin, end in SPANS:
                values = sorted(
                    v
                    for r in by_seed.values()
                    for v in r["kept"][which][begin:end]
                    if math.isfinite(v)
                )
                if values:
                    low, middle, high = (
                        values[int(q * (len(values) - 1))] for q in (0.1, 0.5, 0.9)
                    )
                    columns.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
                else:
                    columns.append("")
            rows.append([shown(method, problem), TASKS[problem][task], *columns])
    steps = ["step 1", "2 to 5", "6 to 20", "from 21"]
    return table(["method", "task", *steps], rows)


def cost_table(records: Sequence[Record]) -> str:
    """The last measurement of each."""
    last: dict[tuple[str, str, str], Record] = {}
    for record in records:
        if record["kind"] == "cost":
            settings = record["settings"]
            last[settings["problem"], settings["optimizer"], record["method"]] = record
    rows = [
        [problem, optimizer, shown(method, problem), f"{r['ms']:.2f}", f"{r['ratio']:.2f}"]
        for (problem, optimizer, method), r in last.items()
    ]
    return table(["problem", "optimizer", "method", "ms", "times the sum's step"], rows)


AGAINST_SUM = [(method, "sum") for method in SHOWN if method != "sum"]
METRIC = [("metric-forward", "osgd-forward"), ("metric-backward", "osgd-backward")]


def tables(records: Sequence[Record]) -> dict[str, str]:
    """By the name of their marks in a page."""
    found = {}
    for problem, optimizer in (("tasks", "sgd"), ("tasks", "adamw"), ("exits", "adamw")):
        name = f"{problem}, {optimizer}"
        if by_method(records, "test", problem, optimizer):
            found[f"{name}, errors"] = errors_table(records, problem, optimizer)
            found[f"{name}, paired"] = paired_table(
                records, problem, optimizer, AGAINST_SUM + METRIC
            )
            found[f"{name}, cosines"] = cosine_table(records, problem, optimizer)
    for problem in TASKS:
        if any(r["kind"] == "promise" and r["settings"]["problem"] == problem for r in records):
            for which in ("before", "after", "whole"):
                found[f"{problem}, promise {which}"] = promise_table(records, problem, which)
    if any(record["kind"] == "cost" for record in records):
        found["cost"] = cost_table(records)
    return found


def errors_figure(records: Sequence[Record], problem: str, optimizers: Sequence[str]) -> Any:
    """A panel a task: every run a dot, the mean and the standard deviation beside them."""
    figure = new_figure(11, 4.8)
    for task, name in enumerate(TASKS[problem]):
        axes = figure.add_subplot(1, 3, task + 1)
        labels = []
        for color, optimizer in zip(("tab:blue", "tab:orange"), optimizers, strict=False):
            for method, by_seed in by_method(records, "test", problem, optimizer).items():
                values = [r["test"][task] for r in by_seed.values() if not r["diverged"]]
                place = len(labels)
                labels.append(f"{method}, {optimizer}")
                axes.plot(values, [place - 0.15] * len(values), "o", color="0.65", ms=3.5, mew=0)
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                mean = statistics.fmean(values)
                axes.errorbar(mean, place + 0.1, xerr=deviation, fmt="o", color=color, capsize=3)
        axes.set_yticks(range(len(labels)), labels if task == 0 else [""] * len(labels))
        axes.invert_yaxis()
        axes.set_title(name)
        axes.set_xlabel("test error, %")
        axes.grid(True, axis="x", alpha=0.25)
    return figure


def write_report(records: Sequence[Record], page: Path | None, figures: Path | None) -> None:
    """Print the tables, or put them between a page's marks."""
    found = tables(records)
    if page is None:
        for name, text in found.items():
            print(f"{name}\n\n{text}\n")
    else:
        text = page.read_text(encoding="utf-8")
        for name, inside in found.items():
            begin, end = f"<!-- {name}: begin -->\n", "<!-- end -->"
            if begin in text:
                before, _, rest = text.partition(begin)
                text = f"{before}{begin}{inside}\n{end}{rest.partition(end)[2]}"
        write_whole(page, text.encode())
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        save_figure(errors_figure(records, "tasks", ["sgd", "adamw"]), figures / "multitask.png")
