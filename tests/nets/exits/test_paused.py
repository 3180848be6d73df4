"""Networks that cannot be exported: a forward pass that pauses at each exit."""

import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anynest
from anynest.nets.exits.paused import paused_pass


class Branches(nn.Module):
    """Its forward pass depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)
        self.two = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)
        self.calls: list[str] = []
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append("one")
        self.seen |= {
            "threads": torch.get_num_threads(),
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        }
        x = self.drop(torch.tanh(self.one(x)))
        self.calls.append("two")
        x = self.two(x)
        if float(x.detach().sum()) > 0:
            x = 2 * x
        self.calls.append("out")
        return self.out(x)


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "anynest-pass"]


@pytest.fixture
def model() -> Iterator[Any]:
    yield anynest.add_exits(Branches(), torch.randn(3, 4), 3, {"one": "auto", "two": "auto"}).eval()
    gc.collect()
    assert ours() == []


def test_chosen_by_itself_and_said_in_one_line(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING)
    model = anynest.add_exits(Branches(), torch.randn(2, 4), 3, {"one": "auto"}).eval()
    list(model.stages(torch.randn(2, 4)))
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.name.startswith("anynest")
    assert "paused forward pass" in record.getMessage()
    assert len(record.getMessage().splitlines()) == 1
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError, match=r"segments need a body that torch.export takes"):
        model.segments()


def test_exact_and_lazy(model: Any) -> None:
    for batch in (1, 3, 8):
        x = torch.randn(batch, 4)
        wanted = model(x)
        model.body.calls.clear()
        stages = model.stages(x)
        assert model.body.calls == []
        for number, done in enumerate((["one"], ["one", "two"], ["one", "two", "out"])):
            stage, output = next(stages)
            assert stage == number + 1
            assert torch.equal(output, wanted[number])
            assert model.body.calls == done
        assert list(stages) == []
        assert ours() == []


def test_modes_are_the_callers(model: Any) -> None:
    x = torch.randn(2, 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        outputs = [y for _, y in model.stages(x)]
        assert model.body.seen == {
            "threads": 2,
            "grad": True,
            "inference": False,
            "autocast": False,
        }
        grads = torch.autograd.grad(outputs[0].sum(), model.body.parameters(), allow_unused=True)
        assert [g is not None for g in grads] == [True, True, False, False, False, False]
        torch.set_num_threads(1)
        with torch.no_grad():
            list(model.stages(x))
        assert not model.body.seen["grad"]
        assert model.body.seen["threads"] == 1
        with torch.inference_mode():
            assert all(output.is_inference() for _, output in model.stages(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            wanted = model(x)
            found = [y for _, y in model.stages(x)]
        assert model.body.seen["autocast"] == torch.bfloat16
        assert wanted[0].dtype == torch.bfloat16
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    finally:
        torch.set_num_threads(before)


def test_training_mode_takes_one_pass(model: Any) -> None:
    """Dropout draws once a pass: by forward, and by stages in training mode."""
    model.train()
    x = torch.ones(64, 4)
    exportable = anynest.add_exits(
        nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.5), nn.Linear(9, 3)), x, 3, {"1": nn.Identity()}
    )
    outputs = dict(exportable.train().stages(x))
    assert (outputs[1] == 0).float().mean() > 0.3
    assert torch.equal(outputs[2], exportable.body[2](outputs[1]))
    assert [stage for stage, _ in model.stages(x)] == [1, 2, 3]
    # one module alone in training mode is as good: segments would not draw
    exportable.eval()
    exportable.body[1].train()
    assert (dict(exportable.stages(x))[1] == 0).float().mean() > 0.3
    exportable.body[1].eval()
    assert (dict(exportable.stages(x))[1] == 0).float().mean() == 0


def test_closing_ends_the_pass(model: Any) -> None:
    stages = model.stages(torch.randn(2, 4))
    next(stages)
    assert len(ours()) == 1
    model.body.calls.clear()
    stages.close()
    assert ours() == []
    assert model.body.calls == [], "nothing runs after the exit"
    abandoned = model.stages(torch.randn(2, 4))
    next(abandoned)
    del abandoned
    gc.collect()
    assert ours() == []
    assert [s for s, _ in model.stages(torch.randn(2, 4))] == [1, 2, 3], "usable afterwards"


def test_errors_reach_the_caller(model: Any) -> None:
    stages = model.stages(torch.randn(2, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        next(stages)
    assert ours() == []

    def fails(emit: Any) -> Tensor:
        emit(1, torch.ones(1))
        raise KeyboardInterrupt

    outcomes = paused_pass(fails)
    assert next(outcomes)[0] == 1
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)


def test_several_passes_at_once(model: Any) -> None:
    """Passes of one network, each stepped in turn and from another thread."""
    inputs = [torch.randn(2, 4) for _ in range(3)]
    wanted = [model(x) for x in inputs]
    passes = [model.stages(x) for x in inputs]
    found: list[list[Tensor]] = [[] for _ in inputs]
    for _ in range(3):
        for number, stages in enumerate(passes):
            thread = threading.Thread(target=lambda n=number, s=stages: found[n].append(next(s)[1]))
            thread.start()
            thread.join()
    for stages in passes:
        assert list(stages) == []
    for one, two in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_cost(model: Any) -> None:
    costs = model.cost()
    assert [cost.own_multiply_adds for cost in costs] == [24 + 18, 36 + 18, 18]
    assert [cost.own_parameters for cost in costs] == [30 + 21, 42 + 21, 21]


class BakedIn(nn.Module):
    """torch.export takes it, but its graph holds a number that was made of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        height = x.detach().numpy().sum() if type(x) is Tensor else 1.0
        return self.out(self.one(x) * float(height))


def test_graphs_that_differ_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    model = anynest.add_exits(BakedIn(), torch.randn(2, 4), 3, {"one": "auto"}).eval()
    assert "differs from forward at stage 2" in caplog.text
    x = torch.randn(3, 4)
    for (_, output), wanted in zip(model.stages(x), model(x), strict=True):
        assert torch.equal(output, wanted)


def test_batch_size_that_becomes_a_constant(caplog: pytest.LogCaptureFixture) -> None:
    class Length(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.one(x).reshape(len(x), 4))

    model = anynest.add_exits(Length(), torch.randn(2, 4), 3, {"one": "auto"}).eval()
    assert "batch size a constant, as len(x) does and x.shape[0] not" in caplog.text
    x = torch.randn(3, 4)
    for (_, output), wanted in zip(model.stages(x), model(x), strict=True):
        assert torch.equal(output, wanted)


class Parity(nn.Module):
    """Pads images of odd height: the graph of an even one stands for even ones alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 2, stride=2)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2:
            x = nn.functional.pad(x, (0, 0, 1, 0))
        return self.out(self.conv(x).amax((2, 3)))


def test_sizes_that_the_graph_does_not_stand_for() -> None:
    model = anynest.add_exits(Parity(), torch.randn(2, 1, 6, 8), 3, {"conv": "auto"}).eval()
    for height in (6, 4, 5, 7, 10):
        x = torch.randn(1, 1, height, 8)
        assert model.accepts(x) == (height % 2 == 0)
        for (_, output), wanted in zip(model.stages(x), model(x), strict=True):
            torch.testing.assert_close(output, wanted)
