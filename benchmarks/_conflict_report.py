"""Tables of ``conflict.py``, and what they say about its two predictions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from anynest.experiments.claims.significance import interval

Record = dict[str, Any]
PAIRS = (("osgd", "sum, as long"), ("osgd, as long", "sum"))  # directions at equal length
TASK_1, MEAN = "task 1", "both tasks"


def value(record: Record, what: str) -> float:
    """An error in %: of task 1, which has the priority, or the mean of both tasks."""
    errors = record["error"]
    return 100 * (errors[0] if what == TASK_1 else statistics.mean(errors))


def settings_of(records: Sequence[Record]) -> list[tuple[str, int]]:
    """What is shared, and the conflict, in the order of the records."""
    return list(dict.fromkeys((r["share"], r["conflict"]) for r in records))


def best_rate(records: Sequence[Record], setting: tuple[str, int], method: str) -> float | None:
    """The rate with the lowest held-out error of both tasks, over the seeds that all rates have."""
    found = [r for r in records if (r["share"], r["conflict"]) == setting and r["method"] == method]
    by_rate: dict[float, dict[int, float]] = {}
    for record in found:
        mean = statistics.mean(record["held_out_error"])
        by_rate.setdefault(record["lr"], {})[record["seed"]] = mean
    if not by_rate:
        return None
    seeds = set.intersection(*map(set, by_rate.values()))
    if not seeds:
        return None
    return min(by_rate, key=lambda rate: (statistics.mean(by_rate[rate][s] for s in seeds), rate))


def by_seed(
    records: Sequence[Record], setting: tuple[str, int], method: str, lr: float | None, what: str
) -> dict[int, float]:
    """Errors of a method at a rate, by seed."""
    return {
        r["seed"]: value(r, what)
        for r in records
        if (r["share"], r["conflict"]) == setting and (r["method"], r["lr"]) == (method, lr)
    }


def differences(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """Paired by seed."""
    return [one[seed] - other[seed] for seed in sorted(set(one) & set(other))]


def at_equal_rates(
    records: Sequence[Record], setting: tuple[str, int], pair: tuple[str, str], what: str
) -> list[float]:
    """Differences of two directions of equal length, averaged over the rates, by seed."""
    rates = sorted({r["lr"] for r in records})
    rows = []
    for lr in rates:
        ours, theirs = (by_seed(records, setting, method, lr, what) for method in pair)
        rows.append({seed: ours[seed] - theirs[seed] for seed in set(ours) & set(theirs)})
    seeds = sorted(set.intersection(*map(set, rows))) if rows else []
    return [statistics.mean(row[seed] for row in rows) for seed in seeds]


def at_best_rates(
    records: Sequence[Record], setting: tuple[str, int], pair: tuple[str, str], what: str
) -> list[float]:
    """Differences of two methods, each at its own best rate, by seed."""
    errors = [by_seed(records, setting, m, best_rate(records, setting, m), what) for m in pair]
    return differences(errors[0], errors[1])


def cosine(records: Sequence[Record], setting: tuple[str, int]) -> float:
    """The mean cosine of the tasks' gradients on shared weights, in runs on the sum."""
    found = [
        r["cosine"]
        for r in records
        if (r["share"], r["conflict"]) == setting and r["method"] == "sum"
    ]
    return statistics.mean(found) if found else 0.0


def text_of(values: Sequence[float]) -> str:
    """
    >>> text_of([-1.0, -2.0, -3.0]), text_of([1.0]), text_of([])
    ('-2.00 [-4.48, +0.48]', '+1.00', '-')
    """
    if not values:
        return "-"
    found = interval(values)
    bounds = f" [{found[0]:+.2f}, {found[1]:+.2f}]" if found else ""
    return f"{statistics.mean(values):+.2f}{bounds}"


def differs(values: Sequence[float]) -> bool:
    """Whether the 95 % interval does not contain 0."""
    found = interval(values)
    return found is not None and not found[0] <= 0 <= found[1]


def table(records: Sequence[Record], what: str) -> list[str]:
    """A row per setting: cosine, directions at equal length and rate, methods at their best."""
    heads = [
        *("shared", "conflict", "cosine"),
        *(f"{a} less {b}" for a, b in PAIRS),
        *("best: osgd less mean", "best: osgd less sum"),
    ]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for setting in settings_of(records):
        cells = [text_of(at_equal_rates(records, setting, pair, what)) for pair in PAIRS]
        for other in ("mean", "sum"):
            cells.append(text_of(at_best_rates(records, setting, ("osgd", other), what)))
        share, conflict = setting
        row = [share, f"{conflict} of 10", f"{cosine(records, setting):+.2f}", *cells]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def refuting(records: Sequence[Record], what: str) -> list[tuple[tuple[str, int], float]]:
    """The settings where the direction makes a difference at equal length, and their cosines."""
    return [
        (setting, cosine(records, setting))
        for setting in settings_of(records)
        if any(differs(at_equal_rates(records, setting, pair, what)) for pair in PAIRS)
    ]


def verdicts(records: Sequence[Record]) -> list[str]:
    """The two predictions, for each measure."""
    lines, total = [], len(settings_of(records))
    for what in (TASK_1, MEAN):
        found = refuting(records, what)
        positive = [setting for setting, mean in found if mean > 0]
        first = f"refuted in {len(found)} of {total} settings" if found else "not refuted"
        second = "not refuted"
        if positive:
            named = ", ".join(f"{share} with {conflict} of 10" for share, conflict in positive)
            second = f"refuted in {len(positive)} settings with a positive cosine ({named})"
        lines.append(f"- Error of {what}: prediction 1 is {first}; prediction 2 is {second}.")
    chance = 0.05 * len(PAIRS) * total
    lines.append(
        f"- The intervals are not adjusted for their number: by chance alone {chance:.1f} of "
        f"{len(PAIRS) * total} would not contain 0."
    )
    return lines


def markdown(records: Sequence[Record], wanted: int) -> str:
    """Verdicts and tables, or how much is missing."""
    state = f"{len(records)} of {wanted} runs are finished."
    if not records:
        return f"{state} There is no result yet.\n"
    seeds = len({record["seed"] for record in records})
    environment = records[0]["environment"]
    minutes = sum(record["cpu_seconds"] for record in records) / 60
    lines = [
        f"{state} {seeds} seeds, {records[0]['epochs']} epochs; {environment['processor']}, one "
        f"thread, torch {environment['torch']}, {minutes:.0f} CPU minutes. Differences in points "
        "of test error, paired by seed, with 95 % intervals; below 0 the first is better. The "
        "directions at equal length are averaged over the learning rates; *best* is each method "
        "at the rate with the lowest held-out error.",
        "",
        *verdicts(records),
    ]
    for what in (TASK_1, MEAN):
        lines += ["", f"Error of {what}:", "", *table(records, what)]
    return "\n".join(lines) + "\n"
