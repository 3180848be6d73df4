"""A report as tables for a page of documentation, between the page's own marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _pages import replace_between, wrapped
from _report import HEADS, facts_of, rows_of, title_of


def heading(report: dict[str, Any]) -> list[str]:
    """The command, the hardware and the versions."""
    environment, versions = report["environment"], report["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    hardware = environment["accelerator"] or environment["processor"]
    where = f"{hardware}, {environment['threads']} threads of {environment['cores']} cores"
    return [f"    {report['command']}", "", f"{where}; Python {environment['python']}, {listed}."]


def models(results: list[dict[str, Any]]) -> list[str]:
    """A table a network, with what was found beneath."""
    lines: list[str] = []
    for result in results:
        lines += ["", f"**{title_of(result)}**", "", f"| {' | '.join(HEADS)} |", "|---" * 4 + "|"]
        lines += [f"| {' | '.join(cells)} |" for cells in rows_of(result)]
        facts = facts_of(result)
        lines += ["", *(f"- {line}" for line in facts)] if facts else []
    return lines


def curve(sweep: str, results: list[dict[str, Any]]) -> list[str]:
    """One table: the ratio to SGD of every variant at every point."""
    unit = "losses" if sweep == "tasks" else "parameters"
    points = [f"{result['stages' if sweep == 'tasks' else 'parameters']:,}" for result in results]
    shown: dict[str, dict[str, float]] = {}
    for point, result in zip(points, results, strict=True):
        for row in result["variants"]:
            shown.setdefault(row["shown"], {})[point] = row["ratio"]["median"]
        if "floor" in result:
            floor = result["floor"]["floor"]["median"]
            shown.setdefault("floor of an exact method", {})[point] = floor
        if "exact" in result.get("floor", {}):
            over = result["floor"]["exact"]["median"]
            shown.setdefault("ours, exact, over the floor", {})[point] = over
        if "of_bandwidth" in result.get("combination", {}):
            part = result["combination"]["of_bandwidth"]["median"]
            shown.setdefault("the combination's bytes over bandwidth, of its time", {})[point] = (
                part
            )
        if "combination" in result:
            share = result["combination"]["share"]["median"]
            shown.setdefault("the combination's share of ours, exact", {})[point] = share
    lines = ["", f"| {unit} | {' | '.join(points)} |", "|---" * (len(points) + 1) + "|"]
    for name, values in shown.items():
        cells = [f"{values[point]:.2f}" if point in values else "" for point in points]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def markdown(report: dict[str, Any]) -> str:
    """All of a report."""
    results = report["results"]
    lines = heading(report) + models([result for result in results if "sweep" not in result])
    for sweep in dict.fromkeys(result["sweep"] for result in results if "sweep" in result):
        lines += curve(sweep, [result for result in results if result.get("sweep") == sweep])
    return wrapped("\n".join(lines) + "\n")


def write_into(path: Path, report: dict[str, Any]) -> None:
    """Put a report between the page's marks for it; ValueError where it has none."""
    part = "sweeps" if any("sweep" in result for result in report["results"]) else "models"
    replace_between(path, f"step.py, {part}", markdown(report))
