"""Validation of records read from files, before anything is computed from them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...store import RunFolderError
from ..catalog.fig9 import KINDS, PANELS, schemes
from .deadline_errors import COUNT
from .records import CELL, DEADLINES, Record, read_results

Rule = tuple[str, Callable[[Any], bool]]
LIMIT = 10**18  # larger than any count here
SEEDS = 1000


def is_number(value: Any) -> bool:
    """A finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LIMIT if isinstance(value, int) else math.isfinite(value)


def is_share(value: Any) -> bool:
    """A number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_whole(value: Any) -> bool:
    """An integer from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LIMIT


def is_list_of(value: Any, kind: Callable[[Any], bool]) -> bool:
    """A non-empty list, all of a kind."""
    return isinstance(value, list) and bool(value) and all(map(kind, value))


def is_cosines(value: Any) -> bool:
    """Epochs with the rows of a lower triangle, all of one size, and perhaps the number of batches
    that they are means of."""
    if not isinstance(value, list):
        return False
    sizes = set()
    for epoch in value:
        rows = epoch.get("cosines") if isinstance(epoch, dict) else None
        if not isinstance(rows, list) or not is_whole(epoch.get("epoch")):
            return False
        if not is_whole(epoch.get("batches") or 0):
            return False
        for number, row in enumerate(rows, start=1):
            if not is_list_of(row, is_number) or len(row) != number:
                return False
        sizes.add(len(rows))
    return len(sizes) <= 1


TEXT: Rule = ("a text", lambda value: isinstance(value, str))
OBJECT: Rule = ("an object", lambda value: isinstance(value, dict))
SHARES: Rule = ("a list of numbers from 0 to 1", lambda value: is_list_of(value, is_share))
IMAGES: Rule = ("a whole number from 0 on", is_whole)
SEED: Rule = (
    f"a whole number from 0 to {SEEDS - 1}",
    lambda value: is_whole(value) and value < SEEDS,
)
COUNTS: Rule = (
    "a list of numbers above 0",
    lambda value: is_list_of(value, lambda one: is_number(one) and one > 0),
)
SECONDS: Rule = ("a number from 0 on", lambda value: is_number(value) and value >= 0)
STAGE: Rule = (
    "null or a stage's number",
    lambda value: value is None or (is_whole(value) and value > 0),
)
PANEL: Rule = (
    f"one of {', '.join(panel.name for panel in PANELS)}",
    lambda value: value in [panel.name for panel in PANELS],
)

REQUIRED: dict[str, dict[str, Rule]] = {
    CELL: {
        "design": TEXT,
        "independent": STAGE,
        "variant": TEXT,
        "seed": SEED,
        "error": SHARES,
        "multiply_adds": COUNTS,
        "settings": OBJECT,
    },
    DEADLINES: {"panel": PANEL, "seed": SEED, "error": OBJECT, "biggest": TEXT},
}
OPTIONAL: dict[str, Rule] = {
    "top5_error": SHARES,
    "validation_error": SHARES,
    "seconds": SECONDS,
    "train_images": IMAGES,
    "test_images": IMAGES,
    "cosines": ("a list of epochs with the rows of a lower triangle", is_cosines),
    "environment": OBJECT,
    "revision": TEXT,
    "anynest": TEXT,
    "finished": TEXT,
}


def read_checked(path: Path) -> list[Record]:
    """The records of a results file, checked; empty if there is no file.

    Raises:
        RunFolderError: For a line that cannot be used.
    """
    records = read_results(path)
    for number, record in enumerate(records, start=1):
        check_record(record, f"{path}, line {number}")
    return records


def check_record(record: Record, place: str) -> None:
    """Checks the fields of a record; accepts any record of an unknown kind.

    Raises:
        RunFolderError: With the field, the rule and the value found.
    """
    if record["kind"] not in REQUIRED:
        return
    optional = {key: rule for key, rule in OPTIONAL.items() if key in record}
    for key, (rule, holds) in {**REQUIRED[record["kind"]], **optional}.items():
        if not holds(record.get(key)):
            found = repr(record[key]) if key in record else "nothing"
            raise wrong(place, f"{key} must be {rule}, found {shortened(found)}")
    if record["kind"] == DEADLINES:
        check_schemes(record, place)
        return
    for key in ("multiply_adds", "top5_error", "validation_error"):
        if key in record and len(record[key]) != len(record["error"]):
            raise wrong(place, f"{key} must have as many stages as error")


def check_schemes(record: Record, place: str) -> None:
    """Checks that a panel's record has an error per scheme and deadline, none included."""
    panel = next(panel for panel in PANELS if panel.name == record["panel"])
    names = [scheme for kind in KINDS for scheme in schemes(panel, kind)]
    for scheme in names:
        errors = record["error"].get(scheme, [])
        if not (is_list_of(errors, is_share) and len(errors) == COUNT + 1):
            raise wrong(place, f"error must have {COUNT + 1} numbers from 0 to 1 for {scheme}")
    if len(record["error"]) != len(names):
        others = ", ".join(sorted(set(record["error"]) - set(names)))
        raise wrong(place, f"error must be of {', '.join(names)}, found {shortened(others)}")


def wrong(place: str, rule: str) -> RunFolderError:
    """The error, with its remedy."""
    return RunFolderError(f"{place}: {rule}; remove it, and anynest reproduce makes it anew")


def shortened(text: str, length: int = 60) -> str:
    """
    >>> shortened("abcdef", 4)
    'a...'
    """
    return text if len(text) <= length else text[: length - 3] + "..."
