"""The model that MLServer loads: the static network of ``_serve_peer``."""

from __future__ import annotations

import base64

from _serve_peer import Network
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Model(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self.network = Network(self.settings.parameters.extra)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (given,) = payload.inputs
        data = given.data.root if hasattr(given.data, "root") else given.data
        texts = data if isinstance(data, list) else [data]
        labels = self.network.labels([base64.b64decode(text) for text in texts])
        output = ResponseOutput(name="label", shape=[len(labels)], datatype="INT64", data=labels)
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[output])
