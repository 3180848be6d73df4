"""Whether a line has what is read from it: results come from files, and files from anywhere."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...store import RunFolderError
from ..catalog.fig9 import PANELS, schemes
from .deadline_errors import COUNT
from .records import CELL, DEADLINES, Line, read_results

Rule = tuple[str, Callable[[Any], bool]]
MOST = 10**18  # beyond all that is counted here
SEEDS = 1000


def is_share(value: Any) -> bool:
    """A number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_number(value: Any) -> bool:
    """A finite one that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < MOST if isinstance(value, int) else math.isfinite(value)


def is_whole(value: Any) -> bool:
    """A number from 0 on, such as a seed's."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def is_list_of(value: Any, kind: Callable[[Any], bool]) -> bool:
    """One member at least, all of a kind."""
    return isinstance(value, list) and bool(value) and all(map(kind, value))


def is_cosines(value: Any) -> bool:
    """Epochs with the rows of a lower triangle, all of one size."""
    if not isinstance(value, list):
        return False
    sizes = set()
    for epoch in value:
        rows = epoch.get("cosines") if isinstance(epoch, dict) else None
        if not isinstance(rows, list) or not is_whole(epoch.get("epoch")):
            return False
        for number, row in enumerate(rows, start=1):
            if not is_list_of(row, is_number) or len(row) != number:
                return False
        sizes.add(len(rows))
    return len(sizes) <= 1


WORDS: Rule = ("a text", lambda value: isinstance(value, str))
OBJECT: Rule = ("an object", lambda value: isinstance(value, dict))
SHARES: Rule = ("a list of numbers from 0 to 1", lambda value: is_list_of(value, is_share))
COUNT_RULE: Rule = ("a whole number from 0 on", is_whole)
SEED: Rule = (
    f"a whole number from 0 to {SEEDS - 1}",
    lambda value: is_whole(value) and value < SEEDS,
)
COUNTS: Rule = (
    "a list of numbers above 0",
    lambda value: is_list_of(value, lambda one: is_number(one) and one > 0),
)
LENGTH: Rule = ("a number from 0 on", lambda value: is_number(value) and value >= 0)

REQUIRED: dict[str, dict[str, Rule]] = {
    CELL: {
        "design": WORDS,
        "independent": (
            "null or a stage's number",
            lambda value: value is None or (is_whole(value) and value > 0),
        ),
        "variant": WORDS,
        "seed": SEED,
        "error": SHARES,
        "multiply_adds": COUNTS,
        "settings": OBJECT,
    },
    DEADLINES: {
        "panel": (
            f"one of {', '.join(panel.name for panel in PANELS)}",
            lambda value: value in [panel.name for panel in PANELS],
        ),
        "seed": SEED,
        "error": OBJECT,
        "biggest": WORDS,
    },
}
OPTIONAL: dict[str, Rule] = {
    "top5_error": SHARES,
    "validation_error": SHARES,
    "seconds": LENGTH,
    "train_images": COUNT_RULE,
    "test_images": COUNT_RULE,
    "cosines": ("a list of epochs with the rows of a lower triangle", is_cosines),
    "environment": OBJECT,
    "revision": WORDS,
    "anynest": WORDS,
    "finished": WORDS,
}


def read_checked(path: Path) -> list[Line]:
    """The lines of a results file; none where there is no file.

    Errors: RunFolderError, one line, for a line that cannot be used.
    """
    lines = read_results(path)
    for number, line in enumerate(lines, start=1):
        check_line(line, f"{path}, line {number}")
    return lines


def check_line(line: Line, place: str) -> None:
    """Nothing for a good line, and for one of a kind that is not known here.

    Errors: RunFolderError, one line, with the field, the rule and the value found.
    """
    rules = REQUIRED.get(line["kind"], {})
    given = {key: rule for key, rule in OPTIONAL.items() if key in line} if rules else {}
    for key, (rule, holds) in {**rules, **given}.items():
        if not holds(line.get(key)):
            found = repr(line[key]) if key in line else "nothing"
            raise wrong(place, f"{key} must be {rule}, found {shortened(found)}")
    if line["kind"] == CELL:
        for key in ("multiply_adds", "top5_error", "validation_error"):
            if key in line and len(line[key]) != len(line["error"]):
                raise wrong(place, f"{key} must have as many stages as error")
    if line["kind"] == DEADLINES:
        check_schemes(line, place)


def check_schemes(line: Line, place: str) -> None:
    """A panel's line has an error for each of its schemes at each deadline and at none."""
    panel = next(panel for panel in PANELS if panel.name == line["panel"])
    kinds = ("base", "nest", "oracle-all", "oracle-each")
    known = [scheme for kind in kinds for scheme in schemes(panel, kind)]
    for scheme in known:
        errors = line["error"].get(scheme, [])
        if not (is_list_of(errors, is_share) and len(errors) == COUNT + 1):
            raise wrong(place, f"error must have {COUNT + 1} numbers from 0 to 1 for {scheme}")
    if len(line["error"]) != len(known):
        others = ", ".join(sorted(set(line["error"]) - set(known)))
        raise wrong(place, f"error must be of {', '.join(known)}, found {shortened(others)}")


def wrong(place: str, rule: str) -> RunFolderError:
    """The error, with its remedy."""
    return RunFolderError(f"{place}: {rule}; remove it, and anynest reproduce makes it anew")


def shortened(text: str, length: int = 60) -> str:
    """
    >>> shortened("abcdef", 4)
    'a...'
    """
    return text if len(text) <= length else text[: length - 3] + "..."
