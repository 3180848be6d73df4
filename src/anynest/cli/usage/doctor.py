"""Flags of ``anynest doctor``."""

from ..flags import add_json_flag
from ..parser import Parser

DESCRIPTION = (
    "Print versions, devices and threads, and check that training computes correctly here. The "
    "exit status is 1 if a check fails."
)
EXAMPLES = "example: anynest doctor --json"


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    add_json_flag(parser)
