"""The provenance of a section's numbers: cells, seeds, time, hardware, versions, commits."""

from collections import Counter
from collections.abc import Callable, Iterable

from ....training.output.reporting import clock, counted
from ...results.records import Record
from ..render.document import Block, RowGroup, Table, text_row
from ..section import Section


def what_ran(section: Section) -> list[Block]:
    """A table of facts; if they differ between records, with the number of records of each."""
    cells, records = section.cells, section.records
    seconds = clock(sum(record.get("seconds", 0) for record in cells))
    seeds = sorted({record["seed"] for record in records})
    facts = {
        "protocol": f"{section.protocol.name}: {section.protocol.title}",
        "data": section.data,
        "cells": f"{len(cells)} trained, {len(records) - len(cells)} measured under deadlines",
        "seeds": ", ".join(map(str, seeds)),
        "training images": distinct(cells, lambda record: number(record, "train_images")),
        "test images": distinct(cells, lambda record: number(record, "test_images")),
        "training time": f"{seconds}, all cells together",
        "hardware": distinct(records, hardware),
        "versions": distinct(records, versions),
        "commits": distinct(records, commit),
        "finished": span([record["finished"] for record in records if "finished" in record]),
    }
    rows = tuple(text_row(name, text) for name, text in facts.items() if text)
    return [Table("What ran", ("", ""), (RowGroup(rows),), words=2)]


def distinct(records: Iterable[Record], describe: Callable[[Record], str]) -> str:
    """The distinct descriptions, most frequent first, with their counts if there are several."""
    found = Counter(text for text in map(describe, records) if text)
    ordered = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(ordered) == 1:
        return ordered[0][0]
    return "; ".join(f"{text} ({count} of {found.total()} results)" for text, count in ordered)


def number(record: Record, key: str) -> str:
    """A field with thousands separators; empty if absent."""
    return f"{record[key]:,}" if key in record else ""


def hardware(record: Record) -> str:
    """The processor or accelerator, cores, threads and precision."""
    given = record.get("environment", {})
    if not given:
        return ""
    parts = [str(given.get("accelerator") or given.get("processor") or "unknown processor")]
    for key, noun in (("cores", "core"), ("threads", "thread")):
        if isinstance(given.get(key), int):
            parts.append(counted(given[key], noun) + (" a run" if key == "threads" else ""))
    machine = record.get("machine")
    if isinstance(machine, dict):
        parts += [str(machine["precision"])] if machine.get("precision") else []
        parts += ["channels last"] if machine.get("channels_last") else []
    return ", ".join(parts)


def versions(record: Record) -> str:
    """The versions of anynest, torch and Python."""
    given = record.get("environment", {})
    parts = [f"anynest {record['anynest']}"] if "anynest" in record else []
    for name, key in (("torch", "torch"), ("Python", "python")):
        parts += [f"{name} {given[key]}"] if key in given else []
    return ", ".join(parts)


def commit(record: Record) -> str:
    """The shortened commit, and whether the code had changes that are not in it."""
    revision = str(record.get("revision", ""))
    name, dirty, _ = revision.partition("-dirty")
    return (name[:10] if " " not in name else name) + (" with changes" if dirty else "")


def span(times: list[str]) -> str:
    """From the first to the last."""
    if not times:
        return ""
    return min(times) if min(times) == max(times) else f"{min(times)} to {max(times)}"
