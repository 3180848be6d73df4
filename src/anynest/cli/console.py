"""Printing. Names and paths are printed as they are, never interpreted as markup."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import rich.console
from rich.box import SIMPLE_HEAD
from rich.table import Table


class Console(rich.console.Console):
    """A rich console for plain text: no markup, no emoji codes, no highlighting.

    Text is not wrapped; tables fit the terminal. A closed pipe raises BrokenPipeError, which
    ``main`` handles, where rich exits with status 1.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print text or a table."""
        options.setdefault("soft_wrap", all(isinstance(item, str) for item in objects))
        super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Called while a BrokenPipeError is handled."""
        raise BrokenPipeError


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()


def make_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], **options: Any
) -> Table:
    """A table of right-aligned columns with a title on the left."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, **options)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*row)
    return table
