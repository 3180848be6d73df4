"""Progress with the time left."""

import io

import pytest

from anynest.cli.console import Console
from anynest.cli.progress_bar import Bar


def shown(terminal: bool, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> str:
    """What is shown when four turns of ten are reported at these times."""
    times = iter([0.0, 0.0, *seconds])
    monkeypatch.setattr("anynest.cli.progress_bar.time.monotonic", lambda: next(times))
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with Bar(console, "profiling") as bar:
        bar.live = None if not terminal else bar.live
        for done in range(1, len(seconds) + 1):
            bar.report(done, 10)
    return file.getvalue()


def test_now_and_then_a_line_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(False, monkeypatch, [10, 20, 31, 40, 61.5])
    assert text == "profiling: 30 %, 1:12 left\nprofiling: 50 %, 1:02 left\n"


def test_short_work_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(False, monkeypatch, [0.1 * i for i in range(10)]) == ""
