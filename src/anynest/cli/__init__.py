"""The command line: thin; it parses, calls and prints."""

from anynest.cli.main import main

__all__ = ["main"]
