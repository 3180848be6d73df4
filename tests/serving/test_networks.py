"""Real networks behind the service: every engine, mixed requests, several models, and reload."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from anynest import add_exits
from anynest.engines.folding import FoldedNetwork
from anynest.engines.module_engine import ModuleSession
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.session import Session
from anynest.engines.torch_engine import TorchSession
from anynest.nets import create_model
from anynest.serving.models import ServedModel
from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.protocol.inference import InferRequest
from anynest.serving.repository import Repository, load
from anynest.serving.scheduler import Scheduler
from anynest.serving.service import Service
from anynest.serving.settings import Settings
from anynest.serving.warm_up import batch_sizes, warm_up
from anynest.store import WeightsInfo

from .fakes import PATIENCE, FakeSession

SHAPE = (3, 8, 8)
ENGINES: dict[str, Any] = {
    "torch": lambda net: TorchSession(FoldedNetwork.of(net)),
    "onnxruntime": OnnxSession.open,
    "modules": ModuleSession,
}


def nested(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return create_model("width_nested_resnet10").eval()


def info() -> WeightsInfo:
    return WeightsInfo("", {}, tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3, 8, "test", "0")


def served(session: Session, name: str = "net") -> ServedModel:
    return ServedModel(name, "1", session, {session.input_names[0]: torch.zeros(1, *SHAPE)}, info())


async def ask(service: Service, name: str, x: np.ndarray[Any, Any], **given: Any) -> Any:
    model = service.model(name)
    with service.admit(model, nbytes=x.nbytes, arrived=time.monotonic(), seconds=PATIENCE) as one:
        await one.begin(InferRequest("", {model.session.input_names[0]: x}, {}, False, given))
        return await one.answer()


@pytest.mark.parametrize("classes", [4, None])
def test_a_network_in_bfloat16(classes: int | None) -> None:
    """Its outputs are sent in float32, which is what the metadata say."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(36, 4)
    ).bfloat16()
    example = torch.zeros(2, *SHAPE, dtype=torch.bfloat16)
    network = add_exits(body, example, num_classes=4, after={"1": "auto"}).bfloat16().eval()
    if classes is None:
        network.num_classes = None
    repository = Repository()
    repository.add(network, "net")

    async def main() -> None:
        service = Service(repository, Settings())
        await service.start()
        try:
            (model,) = repository.loaded()
            described = {one["name"]: one["datatype"] for one in model.metadata()["outputs"]}
            answer = await ask(service, "net", np.zeros((1, *SHAPE), np.float32))
            found = answer.model.outputs(answer.output, answer.stage)
            name = "output" if classes is None else "logits"
            assert found[name].dtype == np.float32
            assert described[name] == "FP32"
        finally:
            await service.stop(PATIENCE)

    asyncio.run(main())


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_are_those_of_the_network_alone(engine: str) -> None:
    """Whatever rows a request was computed with."""
    network = nested()
    draw = random.Random(0)
    sizes = [draw.randint(1, 4) for _ in range(30)]
    inputs = [np.random.default_rng(n).normal(size=(n, *SHAPE)).astype(np.float32) for n in sizes]
    last = [draw.randint(1, 3) for _ in sizes]
    with torch.no_grad():
        wanted = [network(torch.from_numpy(x)) for x in inputs]

    async def main() -> None:
        repository = Repository()
        repository.add(lambda: served(ENGINES[engine](network)), "net")
        service = Service(repository, Settings(max_batch=8))
        await service.start()
        try:
            for _ in range(2):
                answers = await asyncio.gather(
                    *(ask(service, "net", x, stages=n) for x, n in zip(inputs, last, strict=True))
                )
                for answer, outputs, stage in zip(answers, wanted, last, strict=True):
                    assert answer.stage == stage
                    expected = outputs[stage - 1]
                    torch.testing.assert_close(answer.output, expected, rtol=1e-4, atol=1e-5)
        finally:
            await service.stop()

    asyncio.run(main())


def test_two_models_and_two_versions() -> None:
    networks = {("a", "1"): nested(1), ("a", "2"): nested(2), ("b", "1"): nested(3)}
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)

    async def main() -> None:
        repository = Repository()
        for (name, version), network in networks.items():
            repository.add(network, name, version, info=info())
        service = Service(repository, Settings(max_batch=4))
        assert not service.ready
        await service.start()
        try:
            assert service.ready
            assert service.model("a").version == "2"  # the largest
            found = {key: service.model(*key) for key in networks}
            for key, model in found.items():
                now = time.monotonic()
                with service.admit(model, nbytes=1, arrived=now, seconds=PATIENCE) as ticket:
                    await ticket.begin(InferRequest("", {"x": x}, {}, False))
                    answer = await ticket.answer()
                with torch.no_grad():
                    expected = networks[key](torch.from_numpy(x))[-1]
                torch.testing.assert_close(answer.output, expected, rtol=1e-4, atol=1e-5)
        finally:
            await service.stop()
        assert not service.ready

    asyncio.run(main())


def test_a_replaced_model_is_freed_without_the_collector() -> None:
    """What is loaded at the start is out of the collector's sight."""
    interval, frozen = sys.getswitchinterval(), gc.get_freeze_count()

    async def main() -> None:
        repository = Repository()
        repository.add(nested(), "net", info=info())
        service = Service(repository, Settings(max_batch=2))
        await service.start()
        try:
            x = np.zeros((1, *SHAPE), np.float32)
            await ask(service, "net", x)
            old = weakref.ref(service.model("net"))
            gc.disable()
            try:
                await service.reload()
                await ask(service, "net", x)
                async with asyncio.timeout(PATIENCE):
                    while old() is not None:
                        await asyncio.sleep(0.001)
            finally:
                gc.enable()
        finally:
            await service.stop()

    asyncio.run(main())
    assert sys.getswitchinterval() == interval
    assert gc.get_freeze_count() == frozen == 0


# -- warm-up and repository -----------------------------------------------------------------------
def test_every_stage_is_measured_at_every_batch_size() -> None:
    session = FakeSession()
    model = ServedModel("net", "1", session, {"x": torch.zeros(1, 1)})
    told: list[tuple[int, int]] = []
    warm_up(model, 6, progress=lambda model, done, total: told.append((done, total)))
    assert batch_sizes(6) == [1, 2, 4, 6]
    assert batch_sizes(1) == [1]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert model.times is not None
    assert (model.times.num_stages, model.times.max_batch) == (3, 6)
    assert {(stage, len(values)) for stage, values in session.log} == {
        (stage, size) for stage in (1, 2, 3) for size in (1, 2, 4, 6)
    }
    for stage in (1, 2, 3):
        times = [model.times(stage, rows) for rows in range(1, 7)]
        assert times == sorted(times)
    assert session.open == set()
    assert model.output_shape == (4,)


def test_a_model_that_fails_in_the_warm_up_is_closed() -> None:
    def fails(stage: int, values: tuple[float, ...]) -> None:
        raise RuntimeError("no")

    session = FakeSession(on_step=fails)
    model = ServedModel("net", "1", session, {"x": torch.zeros(1, 1)})
    repository = Repository()
    entry = repository.add(lambda: model, "net")
    with pytest.raises(RuntimeError, match="no"):
        load(entry, Settings())
    assert session.closed
    assert session.open == set()


def test_names_and_versions() -> None:
    repository = Repository()
    assert repository.add("runs/first run/a").name == "a"
    assert [repository.add("x", "b").version for _ in range(2)] == ["1", "2"]
    assert repository.add("x", "b", "10").version == "10"
    assert repository.versions("b") == ("1", "2", "10")
    assert repository.names() == ["a", "b"]
    assert repository.find("b") is None  # not loaded
    for name, version, message in (
        ("b", "2", "b version 2 twice"),
        ("c", "0", "must be a number from 1, found '0'"),
        ("c", "v1", "must be a number from 1"),
        ("a/b", "1", "give it as NAME=PATH"),
        ("", "1", "a model's name must be"),
    ):
        with pytest.raises(ValueError, match=message):
            repository.add("x", name, version)
    for name, version, message in (
        ("bb", None, "no model 'bb'; there are b"),
        ("zzz", None, "there are a, b"),
        ("b", "3", "model b has no version '3'; it has 1, 2, 10"),
    ):
        with pytest.raises(ProtocolError, match=message) as found:
            repository.find(name, version)
        assert found.value.status == 404


def test_the_scheduler_has_no_lane_by_default() -> None:
    assert Scheduler().lanes == {}
