"""The error of a request that is not accepted."""

from __future__ import annotations

from ..protocol.errors import ProtocolError


class Refused(ProtocolError):
    """A request that is not accepted now.

    Attributes:
        retry_after: seconds after which it may be.
        unavailable: the server is draining or loading, rather than full.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float = 1.0,
        status: int = 503,
        unavailable: bool = False,
    ) -> None:
        super().__init__(status, message)
        self.retry_after, self.unavailable = retry_after, unavailable
