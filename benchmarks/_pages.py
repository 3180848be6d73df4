"""Parts of a documentation page that a command writes, each between two marks."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from anynest.store import write_whole

WIDTH = 100
# A line that starts so is not prose: a table, code, a picture, a heading, HTML, a directive.
KEPT = ("|", "    ", "!", "#", "<", ":", "`" * 3)
# A word that would start a list, a quotation or a heading where a line begins with it.
MARK = re.compile(r" (?=(?:[-+*>#|=]|\d+[.)]) )")


def wrapped(text: str) -> str:
    """The text, its lines of prose at most 100 characters long."""
    lines: list[str] = []
    fenced = False
    for line in text.split("\n"):
        if line.startswith("`" * 3):
            fenced = not fenced
        if fenced or len(line) <= WIDTH or line.startswith(KEPT):
            lines.append(line)
            continue
        item = re.match(r"[-*] |\d+\. ", line)
        head = item.group() if item else ""
        # Such a mark stays with the word before it.
        body = MARK.sub("\0", line[len(head) :])
        parts = textwrap.wrap(
            body,
            WIDTH,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [part.replace("\0", " ") for part in parts]
    return "\n".join(lines)


def replace_between(page: Path, name: str, text: str) -> None:
    """Put ``text``, wrapped, between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    whole = page.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise ValueError(f"{page} must hold the marks {begin.strip()} and {end}: add them")
    before, _, rest = whole.partition(begin)
    after = rest.partition(end)[2]
    write_whole(page, f"{before}{begin}{wrapped(text)}{end}{after}".encode())


def write_part(page: Path, name: str, text: str) -> None:
    """The same for a command, with a blank line round the text.

    Raises:
        SystemExit: The page has no such marks.
    """
    try:
        replace_between(page, name, f"\n{text.strip()}\n\n")
    except ValueError as error:
        raise SystemExit(str(error)) from None
