"""Which outputs a client gets."""

import pytest

from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.protocol.inference import InferRequest, chosen_outputs


def test_outputs_chosen() -> None:
    def of(outputs: dict[str, bool], binary: bool) -> InferRequest:
        return InferRequest("", {}, outputs, binary)

    assert chosen_outputs(of({}, True), ["a", "b"]) == {"a": True, "b": True}
    assert chosen_outputs(of({"b": False}, True), ["a", "b"]) == {"b": False}
    with pytest.raises(ProtocolError, match="outputs must be among a, b, found 'c'"):
        chosen_outputs(of({"a": True, "c": True}, False), ["a", "b"])
