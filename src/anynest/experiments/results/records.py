"""Results files: one record (a line of JSON) per finished cell, one file per protocol.

A record is unique by kind, key and data label. Records are added under a lock, and the file is
replaced atomically.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...store import RunFolderError, write_whole
from ...store.files import file_lock

Record = dict[str, Any]
REQUIRED = ("kind", "key", "protocol", "data")  # fields of every record, all text
CELL, DEADLINES = "cell", "deadlines"


def identity(record: Record) -> tuple[str, str, str]:
    """Kind, key and data label, which no two records of a file share."""
    return record["kind"], record["key"], record["data"]


def read_results(path: str | Path) -> list[Record]:
    """The records of a results file; empty if there is no file.

    Raises:
        RunFolderError: For an unreadable file, or a line that is no record.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    records = []
    for number, row in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(row)
        except ValueError as error:
            raise RunFolderError(f"{path}, line {number}, must be JSON: {error}") from error
        records.append(require_record(value, f"{path}, line {number},"))
    return records


def require_record(value: Any, place: str) -> Record:
    """The value, if it has the fields that every record has.

    Raises:
        RunFolderError: If it does not.
    """
    if not isinstance(value, dict) or any(not isinstance(value.get(k), str) for k in REQUIRED):
        raise RunFolderError(
            f"{place} is no result: it must be an object with {', '.join(REQUIRED)}; remove it, "
            "and anynest reproduce makes it anew"
        )
    return value


def add_results(path: Path, records: Iterable[Record]) -> int:
    """Adds the records that the file does not contain, and returns their number.

    Raises:
        RunError: If the file cannot be written; it is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f".{path.name}.lock")):
        all_records = {identity(record): record for record in read_results(path)}
        before = len(all_records)
        for record in records:
            all_records.setdefault(identity(record), record)
        if len(all_records) > before:
            rows = [json.dumps(record, allow_nan=False) for record in all_records.values()]
            write_whole(path, ("\n".join(rows) + "\n").encode())
    return len(all_records) - before
