"""Durations as people type them."""

import math
import re

from ..training import ConfigError

UNITS = {"us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0}
_FORM = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*([a-zµμ]*)", re.IGNORECASE)


def parse_duration(text: str, flag: str = "a duration") -> float:
    """Seconds.

    >>> [parse_duration(text) for text in ("10ms", "0.01s", "0.01", "250us", "2m", "1.5 ms")]
    [0.01, 0.01, 0.01, 0.00025, 120.0, 0.0015]

    Errors: ConfigError, one line, that names the flag, for anything else, and for nothing or less.

    >>> parse_duration("10 minutes", "--deadline")
    Traceback (most recent call last):
    anynest.training.errors.ConfigError: --deadline must be a duration such as 10ms, 0.01s, \
250us or 2m, found '10 minutes'
    """
    match = _FORM.fullmatch(text.strip())
    unit = UNITS.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(
            f"{flag} must be a duration such as 10ms, 0.01s, 250us or 2m, found {text!r}"
        )
    # by a whole number of units a second where there are such: 3 ms is 0.003 and no neighbour of it
    number = float(match[1] + (match[2] or ""))
    seconds = number / round(1 / unit) if unit < 1 else number * unit
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{flag} must be longer than nothing and finite, found {text!r}")
    return seconds


def parse_durations(text: str, flag: str) -> list[float]:
    """Several, between commas.

    >>> parse_durations("5ms, 10ms", "--deadlines")
    [0.005, 0.01]
    """
    return [parse_duration(part, flag) for part in text.split(",")]


def show_duration(seconds: float) -> str:
    """With four figures, in the unit that suits it.

    >>> [show_duration(x) for x in (0.0000123, 0.0015, 0.01, 0.25, 12.0, 0.0)]
    ['12.3 us', '1.5 ms', '10 ms', '250 ms', '12 s', '0 s']
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds / 1e-6:.4g} us" if seconds else "0 s"
