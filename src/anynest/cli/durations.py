"""Durations with their unit, as typed on a command line."""

import math
import re
from argparse import ArgumentTypeError

from .parser import shorten

UNITS = {"us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}
_FORM = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*([a-zµμ]*)", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Seconds.

    >>> [parse_duration(text) for text in ("10ms", "0.01s", "250us", "2m", "1.5 ms")]
    [0.01, 0.01, 0.00025, 120.0, 0.0015]

    Raises:
        ArgumentTypeError: no unit, another form, or not positive and finite.

    >>> parse_duration("20")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: must be a duration with its unit, such as 10ms, 0.01s, 250us or 2m, \
found '20'
    """
    match = _FORM.fullmatch(text.strip())
    unit = UNITS.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise ArgumentTypeError(
            "must be a duration with its unit, such as 10ms, 0.01s, 250us or 2m, "
            f"found {shorten(text)}"
        )
    number = float(match[1] + (match[2] or ""))
    # Division by a whole number of units per second rounds correctly: 3 ms is exactly 0.003.
    seconds = number / round(1 / unit) if unit < 1 else number * unit
    if not 0 < seconds < math.inf:
        raise ArgumentTypeError(f"must be positive and finite, found {shorten(text)}")
    return seconds


def parse_deadlines(text: str) -> str | list[float | None]:
    """Seconds separated by commas, None for ``none``; or ``"auto"``.

    >>> parse_deadlines("5ms, none"), parse_deadlines("auto")
    ([0.005, None], 'auto')
    """
    parts = [part.strip() for part in text.split(",")]
    if parts == ["auto"]:
        return "auto"
    return [None if part == "none" else parse_duration(part) for part in parts]


def show_duration(seconds: float) -> str:
    """Four significant digits, in the unit that suits.

    >>> [show_duration(x) for x in (0.0000123, 0.0015, 0.01, 0.25, 12.0, 0.0)]
    ['12.3 us', '1.5 ms', '10 ms', '250 ms', '12 s', '0 s']
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds / 1e-6:.4g} us" if seconds else "0 s"
