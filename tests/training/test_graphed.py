"""Recorded steps: when they are recorded, what they read, and that nothing in them waits.

No CUDA device is at hand in these tests. A stand-in records and replays on the CPU; that no step
would wait for a device is seen on torch's meta device, whose tensors have no values to wait for.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, Combiner, WeightedSGD, list_methods, make_combiner
from anynest.training import ConfigError, TrainConfig, train
from anynest.training.cuda_graph import GraphedStep, make_capturable, require_capturable
from anynest.training.distributed import World
from anynest.training.metrics import RunningMetrics
from anynest.training.step import TrainStep, set_rate
from anynest.training.training_phases import make_phase

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")
# The meta device's tensors have no values: what asks for one, or decides by one, raises there.
META = torch.device("meta")


class StandIn:
    """Runs at once; a recording leaves weights and state as they were, as a CUDA graph's does."""

    def __init__(self, *state: list[Tensor]) -> None:
        self.state = [tensor for tensors in state for tensor in tensors]
        self.log: list[str] = []

    def run(self, work: Callable[[], Any]) -> Any:
        self.log.append("run")
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.log.append("record")
        kept = [tensor.detach().clone() for tensor in self.state]
        result = work()
        with torch.no_grad():
            for tensor, before in zip(self.state, kept, strict=True):
                tensor.copy_(before)
            result.zero_()

        def replay() -> None:
            self.log.append("replay")
            result.copy_(work())

        return replay, result


def test_the_first_steps_are_taken_then_one_is_recorded_and_replayed() -> None:
    weight = torch.zeros(2)

    def step(x: Tensor) -> Tensor:
        weight.add_(x.sum(dim=0))
        return weight.clone()

    recorder = StandIn([weight])
    graphed = GraphedStep(step, "cpu", warmup=2, recorder=recorder)
    plain = torch.zeros(2)
    for number in range(6):
        x = torch.full((3 if number != 4 else 1, 2), float(number + 1))
        plain += x.sum(dim=0)
        result = graphed(x)
        assert torch.equal(result, plain)
    # the fifth batch is a smaller one, which is taken as it is
    assert recorder.log == ["run", "run", "record", "replay", "replay", "run", "replay"]
    assert torch.equal(weight, plain)


def test_steps_of_two_kinds_have_a_recording_each() -> None:
    kinds = iter("abaabba")
    told: list[str] = []
    recorder = StandIn()
    graphed = GraphedStep(
        lambda x: x.clone(),
        "cpu",
        kind=lambda: next(kinds),
        replayed=told.append,
        warmup=1,
        recorder=recorder,
    )
    for number in range(7):
        assert torch.equal(graphed(torch.tensor([float(number)])), torch.tensor([float(number)]))
    # a: run, record and replay, replay, replay; b: run, record and replay, replay
    assert recorder.log.count("record") == 2
    assert told == ["a", "b", "a"]  # replays other than those that follow a recording


def test_without_cuda_it_is_told_in_one_line(tiny: Tiny, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="needs a CUDA device, found cpu: take plain steps"):
        GraphedStep(lambda x: x, "cpu")
    config = tiny(run={"cuda_graph": True}, method={"on_nonfinite": "ignore"})
    with pytest.raises(ConfigError, match=r"run\.cuda_graph needs a CUDA device, found cpu"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, "on_nonfinite ignore .* found raise"),
        ({"run": {"precision": "float16"}}, "found float16"),
        ({"method": {"name": "osgd-norm", "C": "calibrated"}}, "found calibrated"),
        ({"optimizer": {"name": "asgd", "lr": 0.1}}, None),
        ({"optimizer": {"name": "adafactor", "lr": 0.1}}, "found Adafactor: take SGD"),
        ({"method": {"name": "osgd", "refresh": 4}}, None),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    tiny: Tiny, sections: dict[str, dict[str, Any]], said: str | None
) -> None:
    ignoring = {"on_nonfinite": "ignore"} if sections else {}
    method = {**sections.get("method", {}), **ignoring}
    run = {**sections.get("run", {}), "cuda_graph": True}
    config = tiny(**{**sections, "method": method, "run": run})
    if said is None:
        require_capturable(config, torch.device("cuda"), World())
    else:
        with pytest.raises(ConfigError, match=said):
            require_capturable(config, torch.device("cuda"), World())
    require_capturable(tiny(), CPU, World())


def test_ranks_are_refused(tiny: Tiny) -> None:
    config = tiny(run={"cuda_graph": True}, method={"on_nonfinite": "ignore"})
    with pytest.raises(ConfigError, match="one process, found 2"):
        require_capturable(config, torch.device("cuda"), World(size=2))


def test_sgd_takes_the_form_that_reads_its_rate_on_the_device() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    make_capturable(optimizer, META)
    (group,) = optimizer.param_groups
    assert group["fused"]
    assert not group["foreach"]
    assert group["lr"].device == META
    assert group["initial_lr"] == 0.3


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_optimizer_made_capturable_steps_as_before_under_a_schedule(
    tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # off a GPU torch refuses Adam's capturable form; its arithmetic is what is compared here
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_: ["cpu"])
    schedule = tiny(schedule={"epochs": 2, "shape": "cosine"}).schedule
    weights = []
    for ready in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 6))
        optimizer = getattr(torch.optim, name)([weight], lr=0.1)
        if ready:
            make_capturable(optimizer, CPU)
        held = optimizer.param_groups[0]["lr"]
        for batch in range(4):
            set_rate(optimizer, schedule.rate(batch, 2))
            weight.grad = weight.detach() * batch + 1
            optimizer.step()
        assert (optimizer.param_groups[0]["lr"] is held) == ready
        weights.append(weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def step_of(config: TrainConfig, recorded: bool) -> tuple[TrainStep, StandIn]:
    torch.manual_seed(0)
    step = TrainStep(config, make_phase(config, config.model.build(10, 1), 0), CPU)
    step.phase.train_mode()
    recorder = StandIn()
    if recorded:  # what the constructor would do on a CUDA device
        make_capturable(step.optimizer, CPU)
        step.graph = GraphedStep(
            step.eager, CPU, kind=step.kind, replayed=step.replayed, recorder=recorder
        )
    return step, recorder


@pytest.mark.parametrize("refresh", [None, 3])
def test_a_refresh_is_counted_through_replays(
    tiny: Tiny, refresh: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in's replay runs no Python of the combiner's, so that counting is ours alone."""
    config = tiny(method={"name": "osgd", "on_nonfinite": "ignore", "refresh": refresh})
    step, _ = step_of(config, recorded=True)
    kinds: list[bool] = []

    def record(self: StandIn, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        return (lambda: None), work()

    monkeypatch.setattr(StandIn, "record", record)
    assert step.graph is not None
    kind = step.kind

    def watched() -> bool:
        kinds.append(kind())
        return kinds[-1]

    step.graph.kind = watched
    for _ in range(24):
        step(torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))
    assert kinds == [bool(refresh) and number % 3 != 0 for number in range(24)]


# -- nothing waits ---------------------------------------------------------------------------------
@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it to forbid numbers from the host: each is a copy, which a recording does not allow."""

    def forbid() -> None:
        def refuse(*args: Any, **options: Any) -> Tensor:
            raise AssertionError("a number was copied to the device")

        monkeypatch.setattr(torch, "tensor", refuse)
        monkeypatch.setattr(torch, "as_tensor", refuse)
        monkeypatch.setattr(Tensor, "new_tensor", refuse)

    yield forbid
    monkeypatch.undo()


@pytest.fixture
def autocast_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast is switched off; torch has none for this device."""
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda kind="cuda": kind != "meta" and enabled(kind)
    )
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.mark.usefixtures("autocast_on_meta")
@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("width_nested_resnet10", "osgd"),
        ("width_nested_resnet10", "osgd-norm"),
        ("width_nested_resnet10", "sgd-mean"),
        ("alternating_nested_sparse_resnet14", "osgd"),
    ],
)
def test_no_training_step_waits_or_copies(
    tiny: Tiny, model: str, method: str, no_copies: Callable[[], None]
) -> None:
    config = tiny(
        model={"name": model, "growth": None, "base_width": 2},
        method={"name": method, "on_nonfinite": "ignore"},
        optimizer={"clip": 1.0},
    )
    with META:
        network = config.model.build(10, 1)
        images, labels = torch.empty(4, 1, 8, 8), torch.empty(4, dtype=torch.long)
    step = TrainStep(config, make_phase(config, network, 0), META)
    step.phase.train_mode()
    metrics = RunningMetrics(len(step.phase.stages), META)
    for number in range(3):
        if number == 2:
            no_copies()
        output = step(images, labels)
        metrics.add(output.losses_S, output.logits, labels)
        metrics.add_cosines(output.cosines)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.usefixtures("autocast_on_meta")
def test_a_step_that_looks_at_its_losses_is_caught(tiny: Tiny) -> None:
    config = tiny()
    with META:
        network = config.model.build(10, 1)
        images, labels = torch.empty(4, 1, 8, 8), torch.empty(4, dtype=torch.long)
    step = TrainStep(config, make_phase(config, network, 0), META)
    with pytest.raises(RuntimeError, match="meta"):
        step(images, labels)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        out = []
        for block in self.blocks:
            x = torch.tanh(block(x))
            out.append(x.square().mean())
        return out


COMBINERS: dict[str, Callable[[], Combiner]] = {
    **{
        name: (lambda name=name: make_combiner(name, on_nonfinite="ignore"))
        for name in list_methods()
    },
    "refresh": lambda: OSGD(refresh=2, on_nonfinite="ignore"),
    "priority": lambda: OSGD(priority=[2, 0, 1], on_nonfinite="ignore"),
    "weighted": lambda: WeightedSGD([1.0, 2.0, 3.0], on_nonfinite="ignore"),
}


@pytest.mark.parametrize("name", COMBINERS)
def test_no_combiner_waits_or_copies(name: str, no_copies: Callable[[], None]) -> None:
    with META:
        network, x = Two(), torch.empty(5, 4)
    combiner = COMBINERS[name]()
    parameters = list(network.parameters())
    for number in range(5):
        if number == 3:  # until here indices may be made, which are kept
            no_copies()
        network.zero_grad()
        combiner.backward(network(x), parameters)
        assert all(parameter.grad is not None for parameter in parameters)


def test_a_combiner_that_looks_at_its_losses_is_caught() -> None:
    with META:
        network, x = Two(), torch.empty(5, 4)
    with pytest.raises(ValueError, match="meta"):
        OSGD().backward(network(x), network.parameters())
