"""What ``anynest serve``'s own connections add to an ASGI scope; other servers' do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

ARRIVED = "anynest.arrived"  # key: when the headers were parsed, on time.monotonic
CLIENT = "anynest.client"  # key: the ``Client``


class Client:
    """Whoever is at the other end of a connection.

    Attributes:
        gone: whether the connection is closed.
    """

    def __init__(self) -> None:
        self.gone = False
        self._callbacks: set[Callable[[], None]] = set()

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call a function once if the client goes, or has gone, before the block ends."""
        if self.gone:
            callback()
        self._callbacks.add(callback)
        try:
            yield
        finally:
            self._callbacks.discard(callback)

    def leave(self) -> None:
        """The connection is closed."""
        self.gone = True
        for callback in list(self._callbacks):
            callback()
