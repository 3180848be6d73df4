"""Durations as people type them."""

import pytest

from anynest.cli.durations import parse_duration, parse_durations, show_duration
from anynest.training import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10ms", 0.01), ("3ms", 0.003), ("7 ms", 0.007), ("10MS", 0.01), (" 10ms ", 0.01),
        ("0.01s", 0.01), ("0.01", 0.01), (".5", 0.5), ("5.", 5.0), ("1e-2", 0.01), ("1e1ms", 0.01),
        ("250us", 0.00025), ("250µs", 0.00025), ("250μs", 0.00025), ("2m", 120.0),
        ("1.5min", 90.0), ("3", 3.0),
    ],
)  # fmt: skip
def test_understood(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "ms", "10 minutes", "10 ms 5", "-5ms", "0", "0ms", "nan", "inf", "1e999", "1,5ms",
     "0x10", "10hs", "5ms,", "١٠", "1_0"],
)  # fmt: skip
def test_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--deadline must be") as caught:
        parse_duration(text, "--deadline")
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several() -> None:
    assert parse_durations("5ms,10ms, 1s", "--deadlines") == [0.005, 0.01, 1.0]
    with pytest.raises(ConfigError, match=r"--deadlines .* found ''"):
        parse_durations("5ms,,10ms", "--deadlines")


@pytest.mark.parametrize("seconds", [1e-6, 2.5e-5, 0.00123, 0.0101, 0.999, 1.0, 59.0])
def test_shown_is_read_again(seconds: float) -> None:
    assert parse_duration(show_duration(seconds)) == pytest.approx(seconds, rel=1e-3)
