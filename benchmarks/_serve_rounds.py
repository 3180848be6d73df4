"""Runs of the same load in several rounds, each with servers started anew, as one record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Record = dict[str, Any]
MEDIANS = (
    "in_time", "in_time_of_accepted", "answered", "refused", "mean_stage", "accuracy",
    "in_time_per_second", "reply", "cpu",
)  # fmt: skip
SUMS = ("requests", "timeouts", "gave_up", "lost", "errors")
WORST = ("overshoot", "bare", "refusal", "lag")  # of quantiles
SPREAD = ("in_time", "mean_stage", "accuracy")


def merged(records: Iterable[Record], identity: Callable[[Record], list[Any]]) -> list[Record]:
    """The rounds of each load as one record, in the order of the first; other records as they are.

    Shares and means are medians, counts are sums, quantiles of times and the share of the core that
    other machines took are the worst of the rounds. ``spread`` has the least and the largest of
    ``SPREAD``.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(identity(record)), []).append(record)
    return [_merge(group) if group[0]["kind"] == "load" else group[-1] for group in groups.values()]


def _merge(rounds: Sequence[Record]) -> Record:
    found = dict(rounds[-1])

    def values(key: str) -> list[Any]:
        return [one[key] for one in rounds if one.get(key) is not None]

    found |= {key: statistics.median(values(key)) for key in MEDIANS if values(key)}
    found |= {key: sum(values(key)) for key in SUMS}
    found["stolen"] = max(values("stolen"), default=0.0)
    for key in WORST:
        found[key] = {name: max(one[key][name] for one in rounds) for name in found[key]}
    found["generator"] = {
        "busy": max(one["generator"]["busy"] for one in rounds),
        "limit": min(one["generator"]["limit"] for one in rounds),
    }
    found["memory"] = [rounds[0]["memory"][0], max(one["memory"][1] for one in rounds)]
    probes = [one["probe"] for one in rounds if one.get("probe")]
    if probes:
        found["probe"] = {
            "late_share": statistics.mean(one["late_share"] for one in probes),
            "late_most": max(one["late_most"] for one in probes),
        }
    found["rounds"] = len(rounds)
    found["spread"] = {key: [min(values(key)), max(values(key))] for key in SPREAD}
    return found
