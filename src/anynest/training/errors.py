"""Errors of a run, each one line: the rule, the value found, the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches

from ..store.errors import RunError, RunFolderError

__all__ = [
    "ConfigError",
    "DivergedError",
    "Interrupted",
    "RunError",
    "RunFolderError",
    "near_matches",
]


class ConfigError(ValueError):
    """A setting that a run cannot start with (the command line exits with status 2)."""


class DivergedError(RunError):
    """A run whose loss or weights are not finite: its learning rate may be too high."""


class Interrupted(RunError):
    """A run stopped by a signal after it saved a checkpoint (exit status 128 + the signal)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # both, so that it survives pickling
        self.message, self.signal_number = message, signal_number

    def __str__(self) -> str:
        return self.message


def near_matches(name: str, known: Iterable[str]) -> str:
    """``"; near matches: a, b"``, or every known name where none is near.

    >>> near_matches("epohcs", ["epochs", "lr"])
    '; near matches: epochs'
    >>> near_matches("zzz", ["epochs", "lr"])
    '; known: epochs, lr'
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=4, cutoff=0.5)
    return f"; near matches: {', '.join(near)}" if near else f"; known: {', '.join(names)}"
