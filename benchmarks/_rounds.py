"""Interleaved rounds: every variant once a round, in an order that is rotated each round."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from typing import Any


def interleave(
    entries: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 2
) -> dict[str, list[Any]]:
    """What each entry returned in each round; the first ``warm`` rounds are thrown away."""
    names = list(entries)
    results: dict[str, list[Any]] = {name: [] for name in names}
    collects = gc.isenabled()
    gc.disable()
    try:
        for number in range(warm + rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                result = entries[name]()
                if number >= warm:
                    results[name].append(result)
            gc.collect()  # between rounds, not within a step
    finally:
        if collects:
            gc.enable()
    return results


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """25 %, 50 % and 75 %."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles by name, for JSON."""
    low, middle, high = quartiles(values)
    return {"median": middle, "low": low, "high": high}


def ratios(values: list[float], base: list[float]) -> list[float]:
    """One ratio a round, so that a machine whose speed drifts favours none."""
    return [a / b for a, b in zip(values, base, strict=True)]
