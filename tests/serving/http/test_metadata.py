"""The endpoints that compute nothing, the routes' errors, and the application's life."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import torch
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from anynest import serving
from anynest.nets import create_model
from anynest.serving.models import ServedModel
from anynest.serving.repository import Repository
from anynest.serving.service import Service
from anynest.serving.settings import Settings

from ..fakes import FakeSession, fake_model
from .asgi import INFER, Reply, call, decode, encode
from .conftest import TIME, Served, images

Play = Any


async def get(served: Served, path: str, method: str = "GET") -> Reply:
    return await call(served.app, path, method=method)


def test_descriptions(play: Play) -> None:
    async def scenario(served: Served) -> None:
        server = (await get(served, "/v2")).value
        assert server["name"] == "anynest"
        assert "binary_tensor_data" in server["extensions"]
        assert (await get(served, "/v2/health/live")).value == {"live": True}
        assert (await get(served, "/v2/health/ready")).value == {"ready": True}
        for stem in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
            metadata = (await get(served, stem)).value
            assert (metadata["name"], metadata["versions"]) == ("tiny", ["1"])
            assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
            outputs = {tensor["name"] for tensor in metadata["outputs"]}
            assert outputs == {"probabilities", "logits", "label", "confidence", "stage"}
            ready = (await get(served, stem + "/ready")).value
            assert ready == {"name": "tiny", "ready": True}
            config = (await get(served, stem + "/config")).value
            assert (config["name"], config["max_batch_size"]) == ("tiny", 4)
        index = (await get(served, "/v2/repository/index", "POST")).value
        assert [(model["name"], model["state"]) for model in index] == [("tiny", "READY")]

    play(scenario)


def test_statistics_count(play: Play) -> None:
    async def scenario(served: Served) -> None:
        body, headers = encode({"x": images(2)}, parameters=TIME)
        for _ in range(3):
            assert (await call(served.app, INFER, body, headers)).status == 200
        for path in ("/v2/models/stats", "/v2/models/tiny/stats"):
            (found,) = (await get(served, path)).value["model_stats"]
            assert (found["name"], found["inference_count"]) == ("tiny", 6)

    play(scenario)


def test_not_ready(play: Play) -> None:
    async def scenario(served: Served) -> None:
        served.service.draining = True
        for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
            reply = await get(served, path)
            assert (reply.status, "not ready" in reply.error) == (503, True)
        assert (await get(served, "/v2/health/live")).status == 200
        listed = await call(served.app, "/v2/repository/index", b'{"ready": true}')
        assert listed.value == []

    play(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *[("GET", path, 404) for path in ("/", "/v2/", "/v2/nothing", "/v2/models/", "//v2")],
        *[("GET", f"/v2/models/none{rest}", 404) for rest in ("", "/ready", "/config", "/stats")],
        *[("GET", "/v2/models/tiny/versions/7", 404), ("POST", "/v2/models/none/infer", 404)],
        *[("POST", "/v2/repository/models/none/load", 404), ("GET", INFER, 405)],
        *[("POST", "/v2", 405), ("PUT", INFER, 405), ("GET", "/v2/repository/index", 405)],
    ],
)
def test_errors_are_lines(play: Play, method: str, path: str, status: int) -> None:
    async def scenario(served: Served) -> None:
        reply = await get(served, path, method)
        assert reply.status == status
        assert reply.error
        if status == 405:
            assert reply.headers["allow"]

    play(scenario)


def test_a_model_is_loaded_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(served: Served) -> None:
        before = served.service.model("tiny")
        path = "/v2/repository/models/tiny/load"
        assert (await call(served.app, path, b"{}")).status == 200
        assert served.service.model("tiny") is not before
        refused = await call(served.app, path, b'{"parameters": {"config": "{}"}}')
        assert (refused.status, "no parameters" in refused.error) == (400, True)

        async def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError("a secret path")

        monkeypatch.setattr(served.service, "reload", fail)
        failed = await call(served.app, path)
        assert (failed.status, "cannot be loaded" in failed.error) == (500, True)
        assert "secret" not in failed.error

    play(scenario)


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b'{"a": NaN}'])
def test_bodies_of_the_repository(play: Play, body: bytes) -> None:
    async def scenario(served: Served) -> None:
        assert (await call(served.app, "/v2/repository/index", body)).status == 400
        long = await call(served.app, "/v2/repository/index", bytes(100_000))
        assert long.status == 413
        pieces = [b"{", b"}"]
        slow = await call(served.app, "/v2/repository/index", pieces, last=asyncio.Event())
        assert slow.status == 408

    play(scenario, receive_seconds=0.1)


def test_further_routes_are_guarded(play: Play) -> None:
    async def scenario(served: Served) -> None:
        assert (await get(served, "/metrics")).body == b"42"
        stranger = await call(served.app, "/metrics", headers={"host": "evil.com"}, method="GET")
        assert stranger.status == 403

    play(scenario, extra_routes=[Route("/metrics", PlainTextResponse("42"))])


def test_an_application_of_a_network(tmp_path: Any) -> None:
    """``create_app`` loads what it is given when the server starts, and stops with it."""
    model = create_model("width_nested_resnet10", num_classes=4, growth=[[1, 1], [2, 1]])
    model.example_inputs = (torch.zeros(1, 3, 8, 8),)
    app = serving.create_app(model, Settings(max_batch=2))

    async def main() -> None:
        async with app.router.lifespan_context(app):
            body, headers = encode({"input": images()}, parameters=TIME)
            metadata = (await call(app, "/v2/models/model", method="GET")).value
            name = metadata["inputs"][0]["name"]
            body, headers = encode({name: images()}, parameters=TIME)
            _, tensors = decode(await call(app, "/v2/models/model/infer", body, headers))
            with torch.inference_mode():
                wanted = model.eval()(torch.from_numpy(images()))[-1].numpy()
            np.testing.assert_allclose(tensors["logits"], wanted, rtol=1e-3, atol=1e-5)
        assert (await call(app, "/v2/health/ready", method="GET")).status == 503

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded_leaves_none_open() -> None:
    session = FakeSession()

    def missing() -> ServedModel:
        raise OSError("no such network")

    repository = Repository()
    repository.add(lambda: fake_model(session), "sound")
    repository.add(missing, "missing")
    app = serving.create_app(repository)

    async def main() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(OSError, match="no such network"):
        asyncio.run(main())
    assert session.closed


def test_a_service_has_its_settings() -> None:
    with pytest.raises(ValueError, match="settings"):
        serving.create_app(Service(Repository()), Settings())


def test_the_description_is_whole(play: Play) -> None:
    """Every path that is served is described, and nothing else."""

    async def scenario(served: Served) -> None:
        described = (await get(served, "/openapi.json")).value
        assert json.loads(json.dumps(described)) == described
        methods = {
            (route.path, method)
            for route in served.app.routes
            for method in route.methods - {"HEAD"}
        }
        found = {
            (path, method.upper())
            for path, operations in described["paths"].items()
            for method in operations
            if method != "parameters"
        }
        assert found == methods

    play(scenario)
