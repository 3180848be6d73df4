"""What a run shows."""

import io
import time
from typing import Any

import pytest
from rich.console import Console

from anynest.training.output.reporting import Shown, clock, epoch_text, percent

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
    shown = Shown(Console(file=out))
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
    assert lines[0] == "epoch 3/4, 70 %, 3 images/s, 1:30 left"
    assert "\x1b" not in out.getvalue()


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    shown = Shown(Console(file=out, force_terminal=True, width=80))
    shown.REFRESH = 0.0
    shown.begin(10, 0)
    for _ in range(5):
        shown.batch("epoch 1/1", 8)
    shown.end()
    assert "left" in out.getvalue()
    assert "images/s" in out.getvalue()


def test_words() -> None:
    assert (percent(None), percent(0.0625)) == ("-", "6.2")
    assert (clock(75), clock(7325)) == ("1:15", "2:02:05")
