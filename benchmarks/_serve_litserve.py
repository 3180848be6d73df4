"""The API that LitServe's worker process loads: the static network of ``_serve_peer``."""

from typing import Annotated, Any

import litserve
from _serve_peer import Network
from fastapi import Body

RawBody = Annotated[bytes, Body(media_type="application/octet-stream")]


class API(litserve.LitAPI):  # type: ignore[misc]
    """Args: those of ``Network``, and LitServe's own."""

    def __init__(self, options: dict[str, Any], **more: Any) -> None:
        super().__init__(**more)
        self.options = options

    def setup(self, device: str) -> None:
        self.network = Network(self.options)

    def decode_request(self, request: RawBody) -> bytes:
        return request

    def predict(self, x: Any) -> Any:
        labels = self.network.labels(x if isinstance(x, list) else [x])
        return labels if isinstance(x, list) else labels[0]

    def encode_response(self, output: int) -> dict[str, int]:
        return {"label": output}
