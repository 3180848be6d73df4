"""The results: one JSON line per finished cell, in one file a protocol.

A line is written whole or not at all, and a cell has one line per data set: whoever adds lines
reads the file, joins, and puts a new file in the old one's place, under a lock.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...store import RunFolderError, write_whole
from ...store.files import file_lock

Line = dict[str, Any]
# what a line must have: enough to be found, told apart and judged
REQUIRED = ("kind", "key", "protocol", "data")
CELL, DEADLINES = "cell", "deadlines"


def identity(line: Line) -> tuple[str, str, str]:
    """What no two lines of a file share: the kind, the key, and the data's label."""
    return line["kind"], line["key"], line["data"]


def read_results(path: str | Path) -> list[Line]:
    """The lines of a results file; none where there is no file.

    Errors: RunFolderError, one line, for a line that is no result.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    lines = []
    for number, row in enumerate(text.splitlines(), start=1):
        try:
            line = json.loads(row)
        except ValueError as error:
            raise RunFolderError(f"{path}, line {number}, must be JSON: {error}") from error
        lines.append(require_result(line, f"{path}, line {number},"))
    return lines


def require_result(line: Any, place: str) -> Line:
    """The line, if it can be told apart from others; else RunFolderError."""
    if not isinstance(line, dict) or any(not isinstance(line.get(k), str) for k in REQUIRED):
        raise RunFolderError(
            f"{place} is no result: it must be an object with {', '.join(REQUIRED)}; remove it, "
            "and anynest reproduce makes it anew"
        )
    return line


def add_results(path: Path, lines: Iterable[Line]) -> int:
    """Add the lines that the file does not have yet; how many those were.

    Errors: RunError where the file cannot be written; it is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f".{path.name}.lock")):
        known = read_results(path)
        seen = {identity(line) for line in known}
        added = []
        for line in lines:
            if identity(line) not in seen:
                seen.add(identity(line))
                added.append(line)
        if added:
            rows = [json.dumps(line, allow_nan=False) for line in [*known, *added]]
            write_whole(path, ("\n".join(rows) + "\n").encode())
    return len(added)
