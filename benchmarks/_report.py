"""How results are shown and kept."""

from __future__ import annotations

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from anynest.store import write_whole
from anynest.store.hardware import describe_environment

LIBRARIES = ("torch", "torchjd", "pytorch_optimizer", "anynest")


def surroundings(device: str) -> dict[str, Any]:
    """The command, the hardware and the versions that numbers stand with."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    command = shlex.join(["python", *sys.argv])
    environment = describe_environment(torch.device(device))
    return {"command": command, "environment": environment, "versions": versions}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def ranged(values: dict[str, float], digits: int = 3) -> str:
    """``1.234 [1.200, 1.250]``: median and quartiles."""
    return (
        f"{values['median']:.{digits}f} [{values['low']:.{digits}f}, {values['high']:.{digits}f}]"
    )


def milliseconds(values: dict[str, float]) -> str:
    return ranged({key: 1e3 * value for key, value in values.items()}, 1)


def megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f}"


def rows_of(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """A table's cells: variant, time, ratio, peak memory."""
    return [
        (
            row["shown"],
            milliseconds(row["seconds"]),
            ranged(row["ratio"]),
            megabytes(row.get("peak_bytes")),
        )
        for row in result["variants"]
    ]


HEADS = ("variant", "step, ms", "of SGD's", "peak, MiB")


def facts_of(result: dict[str, Any]) -> list[str]:
    """What is said beneath a table."""
    lines = []
    if "floor" in result:
        floor = result["floor"]
        parts = ", ".join(f"{1e3 * b['median']:.1f}" for b in floor["b"])
        lines.append(
            f"floor {ranged(floor['floor'])}: f {1e3 * floor['f']['median']:.1f} ms, b {parts} ms"
        )
        if floor.get("alone"):
            parts = ", ".join(f"{1e3 * b['median']:.1f}" for b in floor["alone_b"])
            lines.append(f"floor with subnetworks alone {ranged(floor['alone'])}: b {parts} ms")
        if floor.get("by_cost"):
            lines.append(f"floor by multiply-adds {floor['by_cost']:.3f}")
        if "exact" in floor:
            lines.append(
                f"exact / SGD over the floor: {ranged(floor['exact'])} (goal: 1.05, of plain trunks 1.15)"
            )
    if "combination" in result:
        share = result["combination"]["share"]
        shown = ranged({key: 100 * value for key, value in share.items()}, 2)
        lines.append(f"combination: {shown} % of the step (goal: 2 %)")
        if "of_bandwidth" in result["combination"]:
            part = result["combination"]
            lines.append(
                f"bandwidth: {ranged(part['of_bandwidth'])} of the combination is the time of its "
                f"{megabytes(part['bytes'])} MiB at {part['bandwidth']['median'] / 1e9:.1f} GB/s"
            )
    if "memory" in result:
        memory = result["memory"]
        ours = f"; ours {megabytes(memory['exact'])} MiB" if "exact" in memory else ""
        lines.append(
            f"peak: bound {megabytes(memory['bound'])} MiB = (SGD's {megabytes(memory['sgd'])} + rows "
            f"{megabytes(memory['rows'])}) + 5 %{ours}"
        )
    return lines


def title_of(result: dict[str, Any]) -> str:
    return (
        f"{result['problem']}: {result['stages']} losses, {result['parameters']:,} parameters, "
        f"batch {result['batch']}, {result['rounds']} rounds"
    )


def show(result: dict[str, Any], console: Console) -> None:
    """A table on the terminal."""
    table = Table(title=title_of(result), title_justify="left")
    for number, head in enumerate(HEADS):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for cells in rows_of(result):
        table.add_row(*cells)
    console.print(table)
    for line in facts_of(result):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def write_json(path: str, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_whole(Path(path).resolve(), text.encode())
