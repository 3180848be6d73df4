"""Finds, reads and checks results files; each cell counts once."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...store import RunFolderError
from ..results.checks import read_checked
from ..results.records import Record, identity


@dataclass(frozen=True)
class Source:
    """A file that was read. name: its path as given; digest: SHA-256 of its bytes."""

    name: str
    records: int
    digest: str


def find_files(places: Iterable[str]) -> list[Path]:
    """The named files, and the ``*.jsonl`` of named folders.

    Raises:
        RunFolderError: If there is none.
    """
    found: dict[Path, None] = {}
    for place in map(Path, places):
        if place.is_dir():
            files = sorted(p for p in place.glob("*.jsonl") if not p.name.startswith("."))
            if not files:
                raise RunFolderError(
                    f"a folder of results must hold *.jsonl, {place} has none: "
                    f"make some with anynest reproduce ... --results {place}/PROTOCOL.jsonl"
                )
        elif place.is_file():
            files = [place]
        else:
            raise RunFolderError(
                f"results must be a file or folder, there is no {place}: "
                "name one, or make it with anynest reproduce ... --results FILE"
            )
        found.update(dict.fromkeys(files))
    return list(found)


def read_all(files: Iterable[Path]) -> tuple[list[Record], list[Source]]:
    """All records, in an order independent of the files' order, and the files.

    Raises:
        RunFolderError: For a line that cannot be used, or two that contradict each other.
    """
    by_identity: dict[tuple[str, str, str], tuple[Record, str]] = {}
    sources = []
    for path in files:
        records, digest = read_one(path)
        sources.append(Source(str(path), len(records), digest))
        for number, record in enumerate(records, start=1):
            place = f"{path}, line {number}"
            first, before = by_identity.setdefault(identity(record), (record, place))
            if first != record:
                raise RunFolderError(
                    f"a cell must have one result, {before} and {place} differ "
                    f"(key {record['key']}): leave one of the files out"
                )
    return sorted((record for record, _ in by_identity.values()), key=order), sources


def read_one(path: Path) -> tuple[list[Record], str]:
    """A file's records and digest, of one version: a sweep may replace the file meanwhile."""
    while True:
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        records = read_checked(path)
        if hashlib.sha256(path.read_bytes()).hexdigest() == before:
            return records, before


def order(record: Record) -> tuple[str, ...]:
    """Sort key, seeds last, so that means do not depend on the files' order."""
    network = [str(record.get(key, "")) for key in ("design", "independent", "variant", "panel")]
    return (record["kind"], *network, str(record.get("seed", 0)).zfill(9), *identity(record))
