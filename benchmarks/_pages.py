"""Parts of a documentation page that a command writes, each between two marks."""

from __future__ import annotations

from pathlib import Path

from anynest.store import write_whole


def replace_between(page: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    whole = page.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise ValueError(f"{page} must hold the marks {begin.strip()} and {end}: add them")
    before, _, rest = whole.partition(begin)
    after = rest.partition(end)[2]
    write_whole(page, f"{before}{begin}{text}{end}{after}".encode())


def write_part(page: Path, name: str, text: str) -> None:
    """The same for a command, with a blank line round the text.

    Raises:
        SystemExit: The page has no such marks.
    """
    try:
        replace_between(page, name, f"\n{text.strip()}\n\n")
    except ValueError as error:
        raise SystemExit(str(error)) from None
