"""Durations as typed on the command line."""

from argparse import ArgumentTypeError

import pytest

from anynest.cli.durations import parse_deadlines, parse_duration, show_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10ms", 0.01), ("3ms", 0.003), ("7 ms", 0.007), ("10MS", 0.01), (" 10ms ", 0.01),
        ("0.01s", 0.01), (".5s", 0.5), ("5.s", 5.0), ("1e-2s", 0.01), ("1e1ms", 0.01),
        ("250us", 0.00025), ("250µs", 0.00025), ("250μs", 0.00025), ("2m", 120.0),
        ("1.5min", 90.0),
    ],
)  # fmt: skip
def test_understood(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "ms", "20", "0.01", "10 minutes", "10 ms 5", "-5ms", "0", "0ms", "nan", "inf",
     "1e999s", "1,5ms", "0x10", "10hs", "5ms,", "١٠", "1_0ms"],
)  # fmt: skip
def test_refused_in_one_line(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^must be ") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deadlines() -> None:
    assert parse_deadlines("5ms,10ms, 1s") == [0.005, 0.01, 1.0]
    assert parse_deadlines("none, 2ms") == [None, 0.002]
    assert parse_deadlines(" auto ") == "auto"
    for wrong in ("5ms,,10ms", "5", "auto,5ms"):
        with pytest.raises(ArgumentTypeError, match="with its unit"):
            parse_deadlines(wrong)


@pytest.mark.parametrize("seconds", [1e-6, 2.5e-5, 0.00123, 0.0101, 0.999, 1.0, 59.0])
def test_shown_is_read_again(seconds: float) -> None:
    assert parse_duration(show_duration(seconds)) == pytest.approx(seconds, rel=1e-3)
