"""Tables and pictures of the study in ``refresh.py``, from the finished runs alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anynest.experiments.claims.significance import interval as student
from anynest.multitask.methods.refresh import drift
from anynest.store import write_whole
from anynest.store.figures import new_figure, save_figure, stage_colors

Run = dict[str, Any]
LAGS = (1, 4, 16, 64)


def read_runs(folder: Path, methods: Sequence[str]) -> dict[str, dict[int, Run]]:
    """Finished runs by method and seed; of one setting alone."""
    found: dict[str, dict[int, Run]] = {method: {} for method in methods}
    settings: dict[str, Any] | None = None
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text())
        settings = settings or run["settings"]
        if run["settings"] != settings:
            raise SystemExit(
                f"{path} has other settings than the runs beside it: take another --out"
            )
        found[run["method"]][run["seed"]] = run
    return {method: runs for method, runs in found.items() if runs}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``mean ± sd``."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def interval(values: Sequence[float]) -> str:
    """Mean and the half width of its 95 % interval (Student's t), if the values differ."""
    mean, ends = statistics.fmean(values), student(values)
    return f"{mean:+.2f}" + (f" ± {(ends[1] - ends[0]) / 2:.2f}" if ends else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def share_refreshed(run: Run) -> float:
    if not run["combiner"].startswith("OSGD"):
        return 0.0
    return statistics.fmean(run["trace"]["refreshed"])


def error_table(runs: dict[str, dict[int, Run]], stages: int) -> str:
    rows = []
    for method, by_seed in runs.items():
        errors = [by_seed[seed]["error"] for seed in sorted(by_seed)]
        share = statistics.fmean(share_refreshed(run) for run in by_seed.values())
        columns = [spread([e[s] for e in errors]) for s in range(stages)]
        whole = spread([statistics.fmean(e) for e in errors])
        rows.append([method, *columns, whole, f"{100 * share:.1f} %", str(len(errors))])
    heads = [f"stage {s + 1}" for s in range(stages)]
    return table(["method", *heads, "mean of stages", "steps that refresh", "n"], rows)


def paired_table(runs: dict[str, dict[int, Run]], stages: int, base: str) -> str:
    rows = []
    for method, by_seed in runs.items():
        seeds = sorted(set(by_seed) & set(runs.get(base, {})))
        if method == base or not seeds:
            continue
        gaps = [
            [a - b for a, b in zip(by_seed[n]["error"], runs[base][n]["error"], strict=True)]
            for n in seeds
        ]
        columns = [interval([gap[s] for gap in gaps]) for s in range(stages)]
        rows.append(
            [method, *columns, interval([statistics.fmean(g) for g in gaps]), str(len(gaps))]
        )
    heads = [f"stage {s + 1}" for s in range(stages)]
    return table([f"minus {base}", *heads, "mean of stages", "pairs"], rows)


def of_exact(run: Run) -> tuple[Tensor, Tensor]:
    """[T, S] weights and [T, S, S] Gram matrices of a run that refreshed at every step."""
    trace = run["trace"]
    return (
        torch.tensor(trace["weights"], dtype=torch.float64),
        torch.tensor(trace["gram"], dtype=torch.float64),
    )


def drifts(run: Run, older: Callable[[Tensor, int], Tensor | None]) -> list[float]:
    """The relative error at each step, had the weights been ``older(all weights, step)``."""
    weights, grams = of_exact(run)
    out = []
    for step in range(len(weights)):
        kept = older(weights, step)
        if kept is not None:
            out.append(float(drift(grams[step], weights[step], kept)))
    return out


def amplification(gram_SS: Tensor, weights_S: Tensor) -> Tensor:
    """``sum_i |w_i| ||g_i|| / ||sum_i w_i g_i||``: at least 1.

    If every gradient changes by a share e of its norm, the update changes by at most this times e.
    """
    parts = (weights_S.abs() * gram_SS.diagonal().clamp(min=0).sqrt()).sum()
    square = (weights_S @ gram_SS @ weights_S).clamp(min=0)
    return torch.where(parts == 0, 1.0, parts / square.sqrt())


def drift_table(exact: dict[int, Run]) -> str:
    def lagged(lag: int) -> Callable[[Tensor, int], Tensor | None]:
        return lambda weights, step: weights[step - lag] if step >= lag else None

    cases: list[tuple[str, Callable[[Tensor, int], Tensor | None]]] = [
        (f"w of {lag} step{'s' if lag > 1 else ''} before", lagged(lag)) for lag in LAGS
    ]
    cases.append(("w = 1 (sgd-sum)", lambda weights, step: torch.ones_like(weights[step])))
    rows = []
    for name, older in cases:
        found = sorted(d for run in exact.values() for d in drifts(run, older))
        if not found:
            continue
        picks = [found[int(q * (len(found) - 1))] for q in (0.1, 0.5, 0.9, 0.99)]
        rows.append([name, *(f"{pick:.3f}" for pick in picks)])
    return table(["in place of the step's own w", "10 %", "median", "90 %", "99 %"], rows)


def weights_table(exact: dict[int, Run]) -> str:
    """How the weights lie, in each quarter of the training."""
    stacks = [of_exact(run) for run in exact.values()]
    weights = torch.stack([w for w, _ in stacks])  # [n, T, S]
    amplified = torch.stack(
        [
            torch.stack([amplification(g, w) for g, w in zip(*reversed(pair), strict=True)])
            for pair in stacks
        ]
    )
    rows = []
    steps = weights.shape[1]
    for quarter in range(4):
        part = slice(quarter * steps // 4, (quarter + 1) * steps // 4)
        seen = weights[:, part].flatten(0, 1)
        columns = [f"{m:.2f} ± {s:.2f}" for m, s in zip(seen.mean(0), seen.std(0), strict=True)]
        below = 100 * (seen < 0).any(1).double().mean()
        high = amplified[:, part].flatten().quantile(0.99)
        rows.append([f"{part.start} to {part.stop - 1}", *columns, f"{below:.1f} %", f"{high:.2f}"])
    heads = [f"w{s + 1}" for s in range(weights.shape[2])]
    return table(["steps", *heads, "steps with some w < 0", "amplification, 99 %"], rows)


def error_figure(runs: dict[str, dict[int, Run]], stages: int) -> Any:
    """A panel a stage: every run a dot, the mean and the standard deviation beside them."""
    figure = new_figure(3.4 * stages, 3.6)
    colors = stage_colors(stages)
    for stage in range(stages):
        axes = figure.add_subplot(1, stages, stage + 1)
        for place, by_seed in enumerate(runs.values()):
            values = [run["error"][stage] for run in by_seed.values()]
            axes.plot([place - 0.14] * len(values), values, "o", color="0.65", ms=3.5, mew=0)
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            mean = statistics.fmean(values)
            axes.errorbar(place + 0.1, mean, deviation, fmt="o", color=colors[stage], capsize=3)
        axes.set_xticks(range(len(runs)), list(runs), rotation=60)
        axes.set_title(f"stage {stage + 1}")
        axes.grid(True, axis="y", alpha=0.25)
    figure.axes[0].set_ylabel("test error, %")
    return figure


def weights_figure(runs: dict[str, dict[int, Run]], seed: int) -> Any:
    """w over the steps of one seed: each step's own, and what the lazy methods used."""
    shown = [method for method in ("exact", "k=16", "k=64") if method in runs]
    figure = new_figure(10, 2.3 * len(shown))
    first = None
    for place, method in enumerate(shown):
        axes = figure.add_subplot(len(shown), 1, place + 1, sharex=first, sharey=first)
        first = first or axes
        weights = torch.tensor(runs[method][seed]["trace"]["weights"])
        for stage, color in enumerate(stage_colors(weights.shape[1])):
            thin = method == "exact"
            axes.plot(
                weights[:, stage], color=color, lw=0.5 if thin else 1.2, label=f"w{stage + 1}"
            )
        axes.axhline(0, color="0.6", lw=0.6)
        axes.set_ylabel(method)
        axes.grid(True, alpha=0.2)
    figure.axes[0].legend(loc="lower right", ncols=weights.shape[1])
    figure.axes[-1].set_xlabel("step")
    return figure


def drift_figure(runs: dict[str, dict[int, Run]], seed: int) -> Any:
    """What refreshes measured."""
    figure = new_figure(10, 2.6)
    axes = figure.add_subplot()
    for method in ("k=4", "k=16", "k=64"):
        if method not in runs:
            continue
        trace = runs[method][seed]["trace"]
        points = [(n, d) for n, d in enumerate(trace["drift"]) if d is not None]
        axes.plot(*zip(*points, strict=True), marker=".", ms=3, lw=0.7, label=method)
    axes.set_yscale("log")
    axes.set_ylabel("drift at a refresh")
    axes.set_xlabel("step")
    axes.legend(ncols=3)
    axes.grid(True, alpha=0.25)
    return figure


def write_report(folder: Path, images: Path, methods: Sequence[str]) -> None:
    """``report.md`` in ``folder``, pictures in ``images``."""
    runs = read_runs(folder, methods)
    if not runs:
        raise SystemExit(f"{folder} must hold finished runs, found none: run without --report-only")
    some = next(iter(next(iter(runs.values())).values()))
    stages = len(some["error"])
    parts = [
        "Test error in %, mean ± standard deviation over seeds:",
        error_table(runs, stages),
    ]
    for base in ("exact", "sgd-sum"):
        if base in runs:
            parts.append(
                f"Paired with {base} by seed, in points, mean ± half of its 95 % interval:"
            )
            parts.append(paired_table(runs, stages, base))
    if "exact" in runs:
        parts += ["Drift along the exact runs:", drift_table(runs["exact"])]
        parts += ["The exact runs' weights, mean ± deviation over steps and seeds:"]
        parts += [weights_table(runs["exact"])]
    seconds = [run["processor_seconds"] for by_seed in runs.values() for run in by_seed.values()]
    parts.append(
        f"{len(seconds)} runs, {sum(seconds) / 60:.0f} processor minutes; {some['parameters']}"
        f" parameters; settings {json.dumps(some['settings'])}; data {some['data']};"
        f" environment {json.dumps(some['environment'])}"
    )
    images.mkdir(parents=True, exist_ok=True)
    save_figure(error_figure(runs, stages), images / "refresh_error.png")
    lazy = [by_seed for method, by_seed in runs.items() if method in ("exact", "k=16", "k=64")]
    seeds = set.intersection(*(set(by_seed) for by_seed in lazy)) if lazy else set()
    if seeds:
        save_figure(weights_figure(runs, min(seeds)), images / "refresh_weights.png")
        save_figure(drift_figure(runs, min(seeds)), images / "refresh_drift.png")
    text = "\n\n".join(parts) + "\n"
    write_whole(folder / "report.md", text.encode())
    print(text)
