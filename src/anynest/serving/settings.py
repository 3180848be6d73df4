"""The bounds and defaults of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..predict.thread_scheduling import check_scheduling

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Every bound of a server. Times are seconds, sizes bytes; each bound is the most allowed.

    Attributes:
        default_deadline: of a request that names none; None: ``max_deadline``.
        max_deadline: a longer one is shortened to it.
        max_batch: rows computed together, and rows of one request.
        max_waiting: rows that wait for their first answer.
        max_held: rows with an answer whose activations are kept for later stages. Beyond it the
            rows that would gain least are answered as they are.
        max_body: of a request, after decompression.
        max_json: of its JSON, which is read in one go while other requests wait (about 30 ms for
            each MiB of numbers).
        max_bytes_in_flight: of the bodies of all accepted requests.
        max_pixels: of an encoded picture, checked before it is decoded.
        receive_seconds: for receiving a request's headers and body.
        drain_seconds: for answering the accepted requests when the server stops.
        client_limit: requests in flight of one client; 0: no limit.
        token: bearer token that requests must have; None: none.
        hosts: accepted ``Host`` headers, without the port.
        threads: within one kernel.
        backend: of the models, as in ``open_session``.
        device: of the models, as in ``open_session``.
        scheduling: of the computing thread (predict/thread_scheduling.py).
        saved_policy: requests that give no confidence stop early by the policy that is saved beside
            each model's weights.

    Raises:
        ValueError: a value out of range.
    """

    default_deadline: float | None = 0.050
    max_deadline: float = 60.0
    max_batch: int = 32
    max_waiting: int = 1024
    max_held: int = 256
    max_body: int = 64 * MIB
    max_json: int = 4 * MIB
    max_bytes_in_flight: int = 256 * MIB
    max_pixels: int = 16_000_000
    receive_seconds: float = 10.0
    drain_seconds: float = 30.0
    client_limit: int = 0
    token: str | None = None
    hosts: tuple[str, ...] = LOOPBACK
    threads: int = 1
    backend: str | None = None
    device: str = "cpu"
    scheduling: str = "behind"
    saved_policy: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "client_limit" else 1
            if field.type == "int" and (type(value) is not int or value < least):
                raise ValueError(f"{field.name} must be an integer from {least}, found {value!r}")
            is_time = type(value) in (int, float) and 0 < value < math.inf
            optional = field.type == "float | None" and value is None
            if str(field.type).startswith("float") and not (is_time or optional):
                raise ValueError(f"{field.name} must be a time above 0 s, found {value!r}")
        check_scheduling(self.scheduling)
        token = self.token
        if token is not None and not (
            len(token) >= 8 and token.isascii() and token.isprintable() and token == token.strip()
        ):
            raise ValueError(
                "token must have at least 8 printable ASCII characters, without spaces at its ends,"
                f" found {len(token)} characters"
            )
