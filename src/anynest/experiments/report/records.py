"""The lines of results files: found, read, checked, each cell once."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...store import RunFolderError
from ..results.checks import read_checked
from ..results.records import Line, identity


@dataclass(frozen=True)
class Source:
    """A file that was read. name: as it was given; digest: the SHA-256 of its bytes."""

    name: str
    lines: int
    digest: str


def find_files(places: Iterable[str]) -> list[Path]:
    """Files as they are named; for a folder its ``*.jsonl``, by name.

    Errors: RunFolderError where there is none.
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


def read_all(files: Iterable[Path]) -> tuple[list[Line], list[Source]]:
    """All lines in an order that does not depend on the files', and where they came from.

    Errors: RunFolderError for a line that cannot be used, and for two that contradict each other.
    """
    by_identity: dict[tuple[str, str, str], tuple[Line, str]] = {}
    sources = []
    for path in files:
        lines, digest = read_one(path)
        sources.append(Source(str(path), len(lines), digest))
        for number, line in enumerate(lines, start=1):
            place = f"{path}, line {number}"
            known, before = by_identity.setdefault(identity(line), (line, place))
            if known != line:
                raise RunFolderError(
                    f"a cell must have one result, {before} and {place} differ "
                    f"(key {line['key']}): leave one of the files out"
                )
    return sorted((line for line, _ in by_identity.values()), key=order), sources


def read_one(path: Path) -> tuple[list[Line], str]:
    """A file's lines and its digest, both of one moment: a sweep may replace it meanwhile."""
    while True:
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = read_checked(path)
        if hashlib.sha256(path.read_bytes()).hexdigest() == before:
            return lines, before


def order(line: Line) -> tuple[str, ...]:
    """Seeds last, so that numbers are averaged in one order wherever they come from."""
    network = [str(line.get(key, "")) for key in ("design", "independent", "variant", "panel")]
    return (line["kind"], *network, str(line.get("seed", 0)).zfill(9), *identity(line))
