"""An ``argparse`` parser whose errors are one line, and the value types that the flags share."""

import argparse
import textwrap
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from ..training.errors import ConfigError

T = TypeVar("T")
MAX_INTEGER = 2**63 - 1  # what a tensor's size can hold


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows every default, in at most 80 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=78)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in (None, False, argparse.SUPPRESS) or default == [] or "default" in text:
            return text
        shown = " ".join(default) if isinstance(default, list) else default
        return f"{text} (default: {shown})".lstrip().replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """Raises :class:`ConfigError` where ``argparse`` prints the usage and exits."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog,
            description=textwrap.fill(description, 78),
            epilog=examples,
            formatter_class=HelpFormatter,
        )

    def error(self, message: str) -> Any:
        """Raise the error as one line that names the flag."""
        if message.startswith("argument "):
            flag, _, rule = message.removeprefix("argument ").partition(": ")
            if rule.startswith(flag):
                message = rule
            else:
                message = f"{flag} {rule}" if rule.startswith("must") else f"{flag}: {rule}"
        has_remedy = " must " in message or "did you mean" in message
        raise ConfigError(message if has_remedy else f"{message}; see `{self.prog} --help`")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse unknown flags and empty values.

        Raises:
            ConfigError: the arguments are wrong.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        for text in unknown:
            if text.startswith("-"):
                flag = text.split("=")[0]
                self.error(f"unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}")
        if unknown:
            self.error(f"unknown argument {unknown[0]!r}")
        for action in self._actions:
            value = getattr(parsed, action.dest, None)
            if value == "" or (isinstance(value, list) and "" in value):
                name = action.option_strings[0] if action.option_strings else action.metavar
                self.error(f"{name} must not be empty, found ''")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            try:
                one_of([str(choice) for choice in action.choices])(str(value))
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentError(action, str(error)) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion, or nothing.

    >>> did_you_mean("--modle", ["--model", "--model-option", "--lr"])
    ': did you mean --model?'
    """
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else ""


def shorten(text: object) -> str:
    """``repr`` of what was typed, cut where it is long."""
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def integer(least: int = 1, most: int = MAX_INTEGER) -> Callable[[str], int]:
    """The type of a flag that takes a whole number from ``least`` to ``most``.

    >>> integer(1, 1024)("8")
    8
    """

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be a whole number, found {shorten(text)}"
            ) from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, found {shorten(value)}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, found {shorten(value)}")
        return value

    return read


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """The type of a flag that takes a name from ``known``."""

    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(known)}, found {shorten(text)}"
                f"{did_you_mean(text, known)}"
            )
        return text

    return read


def comma_list(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """The type of a flag that takes different values of type ``read``, separated by commas.

    >>> comma_list(integer(1, 1024))("1, 8, 1")
    [1, 8]
    """
    return lambda text: list(dict.fromkeys(read(part.strip()) for part in text.split(",")))


def probability(text: str) -> float:
    """The type of a flag that takes a probability above 0.

    >>> probability("0.9")
    0.9
    """
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, found {shorten(text)}") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, found {value}")
    return value
