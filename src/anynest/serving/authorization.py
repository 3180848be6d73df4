"""The bearer token (RFC 6750) that HTTP and gRPC requests bring."""

from __future__ import annotations

import hmac

from .protocol.errors import ProtocolError


def check_token(header: str, token: str | None) -> None:
    """Check the value of ``Authorization``, in a time that does not depend on what is wrong.

    Args:
        header: the value, "" if there is none.
        token: the server's; None allows everybody.

    Raises:
        ProtocolError: 401, it is not the token.
    """
    if token is None:
        return
    scheme, _, found = header.partition(" ")
    right = hmac.compare_digest(found.strip().encode(errors="replace"), token.encode())
    if scheme.lower() != "bearer" or not right:
        raise ProtocolError(401, "Authorization must be 'Bearer' and the server's token")
