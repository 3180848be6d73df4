"""The command line: parses, calls, prints."""

from collections.abc import Sequence

from .interrupts import exit_on_interrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: default: those of the process.
    """
    with exit_on_interrupt():
        from .dispatch import dispatch
    return dispatch(arguments)


__all__ = ["main"]
