"""Who has the token is let in, nobody else."""

import pytest

from anynest.serving.authorization import check_token
from anynest.serving.protocol.errors import ProtocolError


def test_allowed() -> None:
    check_token("", None)
    check_token("Bearer wrong", None)
    for header in ("Bearer secret-1", "bearer secret-1", "BEARER  secret-1 "):
        check_token(header, "secret-1")
    check_token("Bearer gehé", "gehé")


@pytest.mark.parametrize(
    "header",
    ["", "secret-1", "Bearer", "Bearer ", "Basic secret-1", "Bearer secret-", "Bearer \udcff"],
)
def test_refused(header: str) -> None:
    with pytest.raises(ProtocolError, match="Authorization must be") as caught:
        check_token(header, "secret-1")
    assert caught.value.status == 401
    assert "secret-1" not in caught.value.message
