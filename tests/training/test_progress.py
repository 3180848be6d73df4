"""What a run shows."""

import io
import time
from typing import Any

import pytest
from rich.console import Console

from anynest.training.output.reporting import (
    ConsoleReporter,
    ProgressBar,
    clock,
    epoch_text,
    percent,
)

LINE: dict[str, Any] = {
    "epoch": 2, "epochs": 4, "stage": None, "lr": 0.1, "images_per_second": 1234.5,
    "seconds": 6.78, "train": {"error": [0.5, 0.25]},
    "validation": {"split": "test", "error": [0.125, None]},
}  # fmt: skip


def test_epoch_in_one_line() -> None:
    assert epoch_text(LINE) == (
        "epoch 2/4  error % per stage: train 50.0 25.0 | test 12.5  lr 0.1  1234 images/s  6.8 s"
    )


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    shown = ConsoleReporter(Console(file=out))
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown.begin(100, 50)
    for _ in range(25):
        now += 3.0
        shown.batch("epoch 3/4", 8)
    shown.epoch(LINE)
    shown.end()
    lines = out.getvalue().splitlines()
    assert len(lines) == 2  # one a minute, and the epoch's
    assert lines[0] == "epoch 3/4: 70 %, 3 images/s, 1:30 left"
    assert "\x1b" not in out.getvalue()


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    shown = ConsoleReporter(Console(file=out, force_terminal=True, width=80))
    shown.begin(10, 0)
    shown.bar.REFRESH = 0.0
    for _ in range(5):
        shown.batch("epoch 1/1", 8)
    shown.end()
    assert "left" in out.getvalue()
    assert "images/s" in out.getvalue()


def test_words() -> None:
    assert (percent(None), percent(0.0625)) == ("-", "6.2")
    assert (clock(75), clock(7325)) == ("1:15", "2:02:05")


def bar_text(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> str:
    """What a bar shows off a terminal when turns of ten are reported at these times."""
    times = iter([0.0, 0.0, *seconds])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    file = io.StringIO()
    with ProgressBar(Console(file=file, width=80), "profiling") as bar:
        for done in range(1, len(seconds) + 1):
            bar.report(done, 10)
    return file.getvalue()


def test_occasional_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = bar_text(monkeypatch, [10, 20, 31, 40, 61.5])
    assert text == "profiling: 30 %, 1:12 left\nprofiling: 50 %, 1:02 left\n"
    assert bar_text(monkeypatch, [0.1 * i for i in range(10)]) == ""  # short work


def test_a_label_is_no_markup() -> None:
    out = io.StringIO()
    with ProgressBar(Console(file=out, force_terminal=True, width=80), "r_[/x]") as bar:
        bar.REFRESH = 0.0
        bar.report(1, 2)
    assert "r_[/x]" in out.getvalue()
