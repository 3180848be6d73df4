"""How long a request may take: the durations that clients send, of which the smallest holds.

Durations are counted from the moment that the request's headers are parsed. Times of day are not
accepted: clocks differ.
"""

from __future__ import annotations

import math

from .protocol.errors import ProtocolError
from .settings import Settings

MAX_DIGITS = 18


def duration(
    *,
    timeout_us: object = None,
    envoy_ms: object = None,
    anynest_ms: object = None,
    grpc_seconds: float | None = None,
) -> float | None:
    """Seconds that a client gives; 0 or less if its time is over already; None: it says nothing.

    Args:
        timeout_us: the parameter ``timeout``, an integer of microseconds.
        envoy_ms: the header ``x-envoy-expected-rq-timeout-ms``, digits.
        anynest_ms: the header ``anynest-timeout-ms``, a number.
        grpc_seconds: what is left until the gRPC deadline.

    Raises:
        ProtocolError: 400, no number where one must be.

    >>> duration(timeout_us=20_000, anynest_ms="5"), duration(anynest_ms="12.5")
    (0.005, 0.0125)
    """
    given: list[float] = []
    if timeout_us is not None:
        given.append(_integer(timeout_us, "the parameter timeout") * 1e-6)
    if envoy_ms is not None:
        given.append(_digits(envoy_ms, "the header x-envoy-expected-rq-timeout-ms") * 1e-3)
    if anynest_ms is not None:
        given.append(_decimal(anynest_ms, "the header anynest-timeout-ms") * 1e-3)
    if grpc_seconds is not None and math.isfinite(grpc_seconds):
        given.append(grpc_seconds)
    return min(given, default=None)


def bounded(settings: Settings, *given: float | None) -> float:
    """The smallest of the durations given, within the server's default and maximum.

    >>> bounded(Settings(default_deadline=0.05), None), bounded(Settings(), 0.2, 90.0, None)
    (0.05, 0.2)
    """
    known = [seconds for seconds in given if seconds is not None]
    if not known and settings.default_deadline is not None:
        known.append(settings.default_deadline)
    return min([*known, settings.max_deadline])


def _digits(value: object, name: str) -> int:
    """An integer in a header's text."""
    text = str(value).strip()
    digits = text.removeprefix("-")
    whole = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
    return _integer(int(text) if whole else text, name)


def _decimal(value: object, name: str) -> float:
    """A number in a header's text, such as ``12`` or ``12.5``."""
    text = str(value)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (abs(number) < 10**MAX_DIGITS and text.isascii() and "_" not in text):
        raise ProtocolError(400, f"{name} must be a number, found {text[:60]!r}")
    return number


def _integer(value: object, name: str) -> int:
    if type(value) is not int or abs(value) >= 10**MAX_DIGITS:
        raise ProtocolError(
            400, f"{name} must be an integer of at most {MAX_DIGITS} digits, found {value!r:.60}"
        )
    return value
