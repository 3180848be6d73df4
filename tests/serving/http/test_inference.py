"""Answers over HTTP: what they hold, when they come, and what refused or left requests leave."""

from __future__ import annotations

import asyncio
import gzip
import io
import time
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anynest.serving.http import bodies
from anynest.serving.models import ServedModel
from anynest.store import WeightsInfo

from .asgi import HEADER_LENGTH, INFER, Reply, call, decode, encode
from .conftest import LABELS, MEAN, STAGES, STD, TIME, HeldSession, Served, images, logits

Play = Any


async def infer(served: Served, x: Any = None, path: str = INFER, **options: Any) -> Reply:
    """Ask for an answer with all the time there is, unless ``parameters`` say otherwise."""
    keys = ("outputs", "id", "parameters", "json_data")
    header = {"parameters": TIME, **{key: options.pop(key) for key in keys if key in options}}
    body, headers = encode({"x": images() if x is None else x}, **header)
    headers.update(options.pop("headers", {}))
    return await call(served.app, path, body, headers, **options)


# -- what answers hold -----------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("json_data", [True, False])
@pytest.mark.parametrize("binary", [True, False])
def test_the_last_stage(play: Play, rows: int, json_data: bool, binary: bool) -> None:
    x = images(rows)

    async def scenario(served: Served) -> None:
        parameters = {**TIME, "binary_data_output": binary}
        reply = await infer(served, x, json_data=json_data, parameters=parameters, id="seven")
        assert reply.status == 200, reply.body
        header, tensors = decode(reply)
        assert (HEADER_LENGTH in reply.headers) == binary
        media_type = "application/octet-stream" if binary else "application/json"
        assert reply.headers["content-type"] == media_type
        assert reply.headers["content-length"] == str(len(reply.body))
        assert header["model_name"] == "tiny"
        assert (header["model_version"], header["id"]) == ("1", "seven")
        np.testing.assert_allclose(tensors["logits"], logits(x), rtol=1e-6)
        powers = np.exp(logits(x))
        probabilities = powers / powers.sum(1, keepdims=True)
        np.testing.assert_allclose(tensors["probabilities"], probabilities, rtol=1e-5)
        np.testing.assert_allclose(tensors["confidence"], probabilities.max(1), rtol=1e-5)
        assert tensors["stage"].tolist() == [STAGES] * rows
        if not binary:
            labels = [LABELS[index] for index in probabilities.argmax(1)]
            assert tensors["label"].tolist() == labels
        told = header["parameters"]
        assert (told["stage"], told["stages"]) == (STAGES, STAGES)
        assert (told["deadline_met"], told["stop_reason"]) == (True, "complete")
        assert 0 < told["elapsed_us"] < TIME["timeout"]

    play(scenario)


def test_chosen_outputs(play: Play) -> None:
    async def scenario(served: Served) -> None:
        outputs = [{"name": "label"}, {"name": "logits", "parameters": {"binary_data": True}}]
        header, tensors = decode(await infer(served, outputs=outputs))
        assert [tensor["name"] for tensor in header["outputs"]] == ["label", "logits"]
        np.testing.assert_allclose(tensors["logits"], logits(images()), rtol=1e-6)
        reply = await infer(served, outputs=[{"name": "nothing"}])
        assert (reply.status, "found 'nothing'" in reply.error) == (400, True)

    play(scenario)


def test_raw_pixels_and_pictures(play: Play) -> None:
    """UINT8 of both layouts, an encoded picture in a tensor, and one that is the whole body."""
    pixels = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    normal = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    wanted = logits(np.moveaxis(normal, -1, 1).astype(np.float32))
    file = io.BytesIO()
    Image.fromarray(pixels[0]).save(file, "PNG")
    picture = np.array([file.getvalue()], object)

    async def scenario(served: Served) -> None:
        for x in (pixels, np.ascontiguousarray(np.moveaxis(pixels, -1, 1)), picture):
            _, tensors = decode(await infer(served, x))
            np.testing.assert_allclose(tensors["logits"], wanted, atol=1e-5)
        headers = {"content-type": "image/png", "anynest-timeout-ms": "60000"}
        reply = await call(served.app, INFER, file.getvalue(), headers)
        np.testing.assert_allclose(decode(reply)[1]["logits"], wanted, atol=1e-5)
        headers["content-type"] = "image/jpeg"
        assert "picture 0" in (await call(served.app, INFER, b"no picture", headers)).error

    play(scenario)


def test_a_body_that_is_the_tensor(play: Play) -> None:
    x = images(2)

    async def scenario(served: Served) -> None:
        headers = {HEADER_LENGTH: "0", "anynest-timeout-ms": "60000"}
        reply = await call(served.app, INFER, x.tobytes(), headers)
        np.testing.assert_allclose(decode(reply)[1]["logits"], logits(x), rtol=1e-6)
        for size in (0, 1, x.nbytes - 4):
            assert (await call(served.app, INFER, x.tobytes()[:size], headers)).status == 400

    play(scenario)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_requests(play: Play, encoding: str) -> None:
    """The header's length is that of the JSON before compression."""
    body, headers = encode({"x": images()}, parameters=TIME)
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)

    async def scenario(served: Served) -> None:
        reply = await call(served.app, INFER, packed, {**headers, "content-encoding": encoding})
        np.testing.assert_allclose(decode(reply)[1]["logits"], logits(images()), rtol=1e-6)

    play(scenario)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_responses(play: Play, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "COMPRESS_FROM", 10)

    async def scenario(served: Served) -> None:
        parameters = {**TIME, "binary_data_output": True}
        headers = {"accept-encoding": encoding}
        reply = await infer(served, parameters=parameters, headers=headers)
        assert reply.headers["content-encoding"] == encoding
        assert "accept-encoding" in reply.headers["vary"]
        inflated = gzip.decompress if encoding == "gzip" else zlib.decompress
        reply.parts = [inflated(reply.body)]
        np.testing.assert_allclose(decode(reply)[1]["logits"], logits(images()), rtol=1e-6)

    play(scenario)


def test_depth_on_request(play: Play) -> None:
    async def scenario(served: Served) -> None:
        header, tensors = decode(await infer(served, parameters={**TIME, "stages": 1}))
        np.testing.assert_allclose(tensors["logits"], logits(images(), 1), rtol=1e-6)
        assert header["parameters"]["stop_reason"] == "requested"
        header, _ = decode(await infer(served, parameters={**TIME, "confidence": 0.01}))
        assert header["parameters"]["stop_reason"] == "confident"
        assert header["parameters"]["stage"] == 1

    play(scenario)


# -- deadlines -------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["timeout", "anynest-timeout-ms", "x-envoy", "default"])
def test_each_deadline(play: Play, source: str) -> None:
    """Stage 2 never ends: stage 1 is the answer, at the smallest of the deadlines."""
    parameters = {"timeout": 400_000} if source == "timeout" else {}
    if source not in ("timeout", "default"):
        parameters = dict(TIME)
    headers = {
        "anynest-timeout-ms": {"anynest-timeout-ms": "400.5"},
        "x-envoy": {"x-envoy-expected-rq-timeout-ms": "400", "anynest-timeout-ms": "60000"},
    }.get(source, {})

    async def scenario(served: Served) -> None:
        served.session.gates[1].clear()
        began = time.monotonic()
        header, tensors = decode(await infer(served, parameters=parameters, headers=headers))
        assert 0.35 < time.monotonic() - began < 20
        np.testing.assert_allclose(tensors["logits"], logits(images(), 1), rtol=1e-6)
        assert header["parameters"]["stop_reason"] == "deadline"
        served.session.gates[1].set()

    play(scenario, default_deadline=0.4)


def test_no_stage_in_time(play: Play) -> None:
    async def scenario(served: Served) -> None:
        served.session.gates[0].clear()
        reply = await infer(served, parameters={"timeout": 50_000})
        assert (reply.status, reply.error.startswith("no stage was finished")) == (504, True)
        served.session.gates[0].set()

    play(scenario)


@pytest.mark.parametrize("spent", ["0", "-5"])
def test_time_that_is_over(play: Play, spent: str) -> None:
    async def scenario(served: Served) -> None:
        by_header = await infer(served, headers={"anynest-timeout-ms": spent})
        by_parameter = await infer(served, parameters={"timeout": int(spent)})
        assert (by_header.status, by_parameter.status) == (504, 504)
        assert by_header.error
        assert by_parameter.error
        assert served.session.images == 0

    play(scenario)


@pytest.mark.parametrize("value", ["nan", "inf", "x", "", "1_0", "9" * 40])
def test_a_deadline_is_a_number(play: Play, value: str) -> None:
    async def scenario(served: Served) -> None:
        reply = await infer(served, headers={"anynest-timeout-ms": value})
        assert (reply.status, "anynest-timeout-ms must be" in reply.error) == (400, True)

    play(scenario)


def test_the_body_counts(play: Play) -> None:
    """The deadline is over while the body is on its way: 504 then, and not when it is here."""

    async def scenario(served: Served) -> None:
        body, headers = encode({"x": images()})
        reply = await stalled(served, body, {**headers, "anynest-timeout-ms": "100"})
        assert (reply.status, "before the body's end" in reply.error) == (504, True)
        assert served.session.images == 0

    play(scenario, receive_seconds=1e6)


def test_a_slow_body(play: Play) -> None:
    async def scenario(served: Served) -> None:
        body, headers = encode({"x": images()})
        for known in ({}, {"content-length": str(len(body))}):
            reply = await stalled(served, body, {**headers, **known})
            assert (reply.status, reply.headers["connection"]) == (408, "close")
            assert "within 0.1 s" in reply.error

    play(scenario, receive_seconds=0.1)


async def stalled(served: Served, body: bytes, headers: dict[str, str]) -> Reply:
    """The response to a body whose second half never comes."""
    pieces = [body[:50], body[50:]]
    return await call(served.app, INFER, pieces, headers, last=asyncio.Event())


@pytest.mark.parametrize("pictures", [True, False])
def test_the_first_admission_asks_for_no_more_than_there_is(pictures: bool) -> None:
    """By the length alone: a long body may be one picture, a tensor has rows of known size."""
    x = torch.zeros(1, 3, 8, 8)
    info = WeightsInfo("tiny", {}, LABELS, MEAN, STD, 8, "none", "0", "whole")
    model = ServedModel("tiny", "1", HeldSession(), {"x": x}, info if pictures else None)
    rows = 5
    assert model.least_rows(100 + rows * x.nbytes, 100) == (1 if pictures else rows)
    assert model.least_rows(100 + rows * x.nbytes - 1, 100) == (1 if pictures else rows - 1)
    assert model.least_rows(10, 100) == model.least_rows(10**6) == 1


# -- refusals --------------------------------------------------------------------------------------
def test_a_full_queue_refuses_before_the_body(play: Play) -> None:
    """One request runs, one waits; a third is refused though its body never comes."""

    async def scenario(served: Served) -> None:
        served.session.gates[0].clear()
        first = asyncio.create_task(infer(served))
        await asyncio.to_thread(served.session.begun[0].wait)
        second = asyncio.create_task(infer(served))
        await served.until(lambda: served.service.in_flight == 2)
        body, headers = encode({"x": images()}, parameters=TIME)
        reply = await stalled(served, body, headers)
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert "cannot be answered in time" in reply.error
        assert served.service.in_flight == 2
        served.session.gates[0].set()
        assert ((await first).status, (await second).status) == (200, 200)

    play(scenario, max_waiting=1)


def test_bytes_in_flight(play: Play) -> None:
    """Counted by ``Content-Length``, and as they grow where there is none or it tells less."""
    body, headers = encode({"x": images()}, parameters=TIME)
    zipped = {**headers, "content-encoding": "gzip"}

    async def scenario(served: Served) -> None:
        whole = await call(served.app, INFER, body, headers)
        in_chunks = await call(served.app, INFER, [body[:300], body[300:]], headers)
        packed = await call(served.app, INFER, gzip.compress(body), zipped)
        for reply in (whole, in_chunks, packed):
            assert reply.status == 503
            assert "requests in flight may have" in reply.error
            served.assert_baseline()
        small, headers_of_small = encode({"x": images()[:, :1]})
        assert (await call(served.app, INFER, small, headers_of_small)).status == 400

    play(scenario, max_bytes_in_flight=len(body) - 1)


def test_bodies_are_bounded(play: Play) -> None:
    body, headers = encode({"x": images()}, parameters=TIME)

    async def scenario(served: Served) -> None:
        for pieces in (body, [body[:300], body[300:]]):
            reply = await call(served.app, INFER, pieces, headers)
            assert (reply.status, "at most" in reply.error) == (413, True)
        zipped = {**headers, "content-encoding": "gzip"}
        bomb = await call(served.app, INFER, gzip.compress(bytes(100_000)), zipped)
        assert (bomb.status, "found more" in bomb.error) == (413, True)
        unknown = await call(served.app, INFER, b"x", {"content-encoding": "br"})
        assert (unknown.status, "'br'" in unknown.error) == (415, True)

    play(scenario, max_body=len(body) - 1)


def test_json_is_bounded_on_its_own(play: Play) -> None:
    """It is read in one go, while everybody waits; tensors in binary may be longer."""
    x = images(4)

    async def scenario(served: Served) -> None:
        assert (await infer(served, x)).status == 200
        for reply in (
            await infer(served, x, json_data=True),
            await infer(served, x, id="x" * 1000),
        ):
            assert (reply.status, "at most 800 bytes" in reply.error) == (413, True)

    play(scenario, max_json=800)


def test_one_clients_limit(play: Play) -> None:
    async def scenario(served: Served) -> None:
        served.session.gates[0].clear()
        first = asyncio.create_task(infer(served))
        await served.until(lambda: served.service.in_flight == 1)
        reply = await infer(served)
        assert (reply.status, "1 requests in flight" in reply.error) == (429, True)
        served.session.gates[0].set()
        assert (await first).status == 200
        assert (await infer(served)).status == 200

    play(scenario, client_limit=1)


def test_draining(play: Play) -> None:
    async def scenario(served: Served) -> None:
        served.service.draining = True
        reply = await infer(served)
        assert (reply.status, reply.error) == (503, "the server stops")

    play(scenario)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"rows": 5}, "may have 4 rows, found 5"),
        ({"name": "y"}, "inputs must be x, found y"),
        ({"shape": (1, 3, 7, 7)}, "found [1, 3, 7, 7]"),
        ({"parameters": {"stages": 4}}, "stages must be an integer from 1 to 3"),
        ({"parameters": {"confidence": 2}}, "confidence must be"),
        ({"parameters": {"timeout": "soon"}}, "timeout must be an integer"),
        ({"parameters": {"priority": -1}}, "priority must be"),
        ({"value": np.nan}, "finite"),
    ],
)
def test_malformed(play: Play, change: dict[str, Any], found: str) -> None:
    shape = change.get("shape", (change.get("rows", 1), 3, 8, 8))
    x = np.full(shape, change.get("value", 0.5), np.float32)
    parameters = {**TIME, **change.get("parameters", {})}
    body, headers = encode({change.get("name", "x"): x}, parameters=parameters)

    async def scenario(served: Served) -> None:
        reply = await call(served.app, INFER, body, headers)
        assert reply.status == 400
        assert found in reply.error
        assert served.session.images == 0

    play(scenario)


@pytest.mark.parametrize("length", ["x", "-1", "9" * 30, "999999", "1"])
def test_lengths_of_the_header(play: Play, length: str) -> None:
    async def scenario(served: Served) -> None:
        assert (await infer(served, headers={HEADER_LENGTH: length})).status == 400

    play(scenario)


def test_no_such_model(play: Play) -> None:
    async def scenario(served: Served) -> None:
        for path in ("/v2/models/tinny/infer", "/v2/models/tiny/versions/2/infer"):
            reply = await infer(served, path=path)
            assert reply.status == 404
            assert "tiny" in reply.error
        assert (await infer(served, path="/v2/models/tiny/versions/1/infer")).status == 200

    play(scenario)


def test_a_failed_computation(play: Play) -> None:
    async def scenario(served: Served) -> None:
        served.session.error = ValueError("first line\nsecond line")
        reply = await infer(served)
        assert (reply.status, "first line second line" in reply.error) == (500, True)
        served.session.error = None
        while (await infer(served)).status != 200:  # the compute thread starts again
            await asyncio.sleep(0.01)

    play(scenario)


def test_the_unexpected(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours: one line for the client, the traceback for the server that runs us."""

    async def scenario(served: Served) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise KeyError("secret")

        replies: list[Reply] = []
        monkeypatch.setattr(served.service, "admit", fail)
        with pytest.raises(KeyError, match="secret"):
            await infer(served, into=replies.append)
        assert replies[0].status == 500
        assert replies[0].error == "the server failed; its log says why"
        assert replies[0].headers["x-content-type-options"] == "nosniff"

    play(scenario)


# -- clients that go -------------------------------------------------------------------------------
def test_gone_before_the_body(play: Play) -> None:
    async def scenario(served: Served) -> None:
        body, headers = encode({"x": images()}, parameters=TIME)
        reply = await call(served.app, INFER, [body[:50], body[50:]], headers, vanish=True)
        assert reply.status == 499
        assert served.session.images == 0

    play(scenario)


@pytest.mark.parametrize("path", [INFER, INFER + "_stream"])
def test_gone_while_it_waits(play: Play, path: str) -> None:
    """It leaves the queue at once, and nothing is computed for it."""

    async def scenario(served: Served) -> None:
        served.session.gates[0].clear()
        first = asyncio.create_task(infer(served))
        await asyncio.to_thread(served.session.begun[0].wait)
        gone = asyncio.Event()
        second = asyncio.create_task(infer(served, path=path, disconnect=gone))
        await served.until(lambda: served.service.in_flight == 2)
        gone.set()
        assert (await second).status == 499
        assert served.service.in_flight == 1
        served.session.gates[0].set()
        assert (await first).status == 200
        assert served.session.images == 1

    play(scenario)
