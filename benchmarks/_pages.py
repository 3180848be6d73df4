"""Parts of a documentation page that a command writes, each between two marks."""

from __future__ import annotations

from pathlib import Path

from anynest.store import write_whole


def replace_between(page: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Raises:
        SystemExit: The page has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    whole = page.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise SystemExit(f"{page} must hold the marks {begin.strip()} and {end}: add them")
    before, _, rest = whole.partition(begin)
    after = rest.partition(end)[2]
    write_whole(page, f"{before}{begin}\n{text.strip()}\n\n{end}{after}".encode())
