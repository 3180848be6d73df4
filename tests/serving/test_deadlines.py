"""Durations on the wire."""

from __future__ import annotations

import pytest

from anynest.serving.deadlines import bounded, duration
from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.settings import Settings


def test_the_smallest_duration_holds() -> None:
    given = {"timeout_us": 30_000, "envoy_ms": "40", "anynest_ms": "50", "grpc_seconds": 0.06}
    assert duration(**given) == pytest.approx(0.03)  # type: ignore[arg-type]
    for name, seconds in (("timeout_us", 0.04), ("envoy_ms", 0.05), ("anynest_ms", 0.06)):
        given.pop(name)
        assert duration(**given) == pytest.approx(seconds)  # type: ignore[arg-type]
    assert duration() is None
    assert duration(grpc_seconds=float("inf")) is None


def test_a_time_that_is_over_is_a_duration() -> None:
    assert duration(timeout_us=0) == 0
    assert duration(anynest_ms="-5") == pytest.approx(-0.005)
    assert duration(grpc_seconds=-1.0, timeout_us=5) == -1.0


@pytest.mark.parametrize("text", ["", "\u0663", "nan", "-inf", "1_0", "0x10", "9" * 400, "1.5.1"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ProtocolError, match="anynest-timeout-ms must be a number") as found:
        duration(anynest_ms=text)
    assert found.value.status == 400


@pytest.mark.parametrize(
    "given",
    [
        {"timeout_us": "5"},
        {"timeout_us": 5.0},
        {"timeout_us": True},
        {"timeout_us": 10**18},
        {"timeout_us": [1]},
        {"envoy_ms": "1e3"},
        {"envoy_ms": "9" * 400},
        {"envoy_ms": "0x10"},
        {"envoy_ms": "--1"},
    ],
)
def test_what_is_no_integer(given: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="must be an integer of at most 18 digits") as found:
        duration(**given)  # type: ignore[arg-type]
    assert found.value.status == 400
    assert len(found.value.message) < 200


def test_the_servers_default_and_maximum() -> None:
    settings = Settings(default_deadline=0.05, max_deadline=2.0)
    assert bounded(settings) == bounded(settings, None, None) == 0.05
    assert bounded(settings, 0.5, None) == 0.5  # above the default
    assert bounded(settings, 5.0, 7.0) == 2.0
    assert bounded(settings, -1.0, 7.0) == -1.0
    assert bounded(Settings(default_deadline=None, max_deadline=3.0)) == 3.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_batch": 0}, "max_batch must be an integer from 1, found 0"),
        ({"max_body": 1.5}, "max_body must be an integer from 1"),
        ({"client_limit": -1}, "client_limit must be an integer from 0"),
        ({"max_deadline": 0}, "max_deadline must be a time above 0 s"),
        ({"max_deadline": None}, "max_deadline must be a time above 0 s"),
        ({"default_deadline": float("nan")}, "default_deadline must be a time above 0 s"),
        ({"drain_seconds": float("inf")}, "drain_seconds must be a time above 0 s"),
        ({"token": "short"}, "token must have at least 8"),
        ({"token": "a line\nand another"}, "token must have at least 8 printable"),
        ({"scheduling": "fast"}, "scheduling must be one of"),
    ],
)
def test_settings_out_of_range(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)  # type: ignore[arg-type]
    assert Settings(client_limit=0, default_deadline=None, token="12345678").client_limit == 0
