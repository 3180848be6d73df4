"""The exceptions of the protocol: a status and a line for the client."""


class ProtocolError(Exception):
    """A request that cannot be served.

    Attributes:
        status: of HTTP, such as 400 (malformed) or 413 (too large).
        message: one line: the rule, what was found, the remedy.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, " ".join(message.split())[:500]
        super().__init__(self.message)


class ClientGone(ProtocolError):
    """The client has closed the connection. 499 is nginx's status for it, which nobody reads."""

    def __init__(self) -> None:
        super().__init__(499, "the client has gone")
