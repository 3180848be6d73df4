"""``anynest demo``."""

from .command import run

__all__ = ["run"]
