"""Bodies without JSON: one encoded picture, or the bytes of one tensor."""

from __future__ import annotations

import numpy as np

from ..models import ServedModel
from ..protocol.errors import ProtocolError
from ..protocol.inference import InferRequest
from ..protocol.tensors import datatype_of, from_binary


def read_raw(model: ServedModel, body: bytes, content_type: str) -> InferRequest:
    """A request of one input.

    Args:
        model: that the request asks for.
        body: of ``Content-Type: image/...``, an encoded picture; of any other, the values of the
            input's type in the metadata, of any number of rows.
        content_type: of the request.

    Raises:
        ProtocolError: the model has several inputs, or the bytes are not those of whole rows.
    """
    if len(model.example) != 1:
        raise ProtocolError(400, f"a body without JSON is one input, {model.name} has several")
    ((name, value),) = model.example.items()
    what = f"tensor {name!r}"
    if content_type.lower().startswith("image/"):
        picture = np.empty(1, object)
        picture[0] = body
        return InferRequest("", {name: picture}, {}, False)
    row = value[0].numel() * value.element_size()
    shape = (len(body) // row, *value.shape[1:])
    array = from_binary(memoryview(body), datatype_of(value.numpy()), shape, what)
    return InferRequest("", {name: array}, {}, False)
