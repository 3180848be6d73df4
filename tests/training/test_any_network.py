"""Runs of networks that are not the paper's: a module with num_stages and forward is enough."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest import AnytimePredictor, add_exits, create_model, load, register
from anynest.nets import registry
from anynest.store import RunFolderError, read_info
from anynest.training import (
    ConfigError,
    Interrupted,
    TrainConfig,
    evaluate,
    train,
)
from anynest.training.output.reporting import NullReporter
from anynest.training.run import check_network
from anynest.training.step import TrainStep
from anynest.training.training_phases import make_phase

Tiny = Callable[..., TrainConfig]
MODEL = {"name": "small_cnn", "growth": None, "base_width": None, "options": {"width": 8}}


class SmallCNN(nn.Module):
    """Two exits on convolutions of images of 8x8 pixels, with batch norm and dropout; no base class."""

    num_stages = 2

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)
        )
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(True)
        )
        self.dropout = nn.Dropout(0.2)
        self.heads = nn.ModuleList(nn.Linear(width * n, num_classes) for n in (64, 9))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [out for _, out in self.stages(x)]

    def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        x = self.first(x)
        yield 1, self.heads[0](self.dropout(x.flatten(1)))
        yield 2, self.heads[1](self.dropout(self.second(x).flatten(1)))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    @register
    def small_cnn(num_classes: int = 10, in_channels: int = 3, width: int = 4) -> SmallCNN:
        """Two exits."""
        return SmallCNN(num_classes, in_channels, width)

    @register
    def exits_of_a_body(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
        """A network that knows nothing of exits, with one."""
        body = nn.Sequential(
            *(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.Dropout(0.1)),
            *(nn.Flatten(), nn.Linear(8 * 36, num_classes)),
        )
        example = torch.zeros(2, in_channels, 8, 8)
        return add_exits(body, example, num_classes, after={"2": "auto"})


NETWORKS = [
    MODEL,
    {"name": "exits_of_a_body", "growth": None, "base_width": None},
    {
        **{"name": "width_nested_vit_tiny", "growth": [[1, 1], [2, 1]], "base_width": 8},
        "options": {"layers": 1, "head_size": 8, "patch_size": 2},
    },
]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["osgd", "normsgd", "sgd"])
def test_a_run_learns_and_its_weights_are_loaded(tmp_path: Path, tiny: Tiny, method: str) -> None:
    config = tiny(
        model=MODEL, method={"name": method}, data={"limit": None}, optimizer={"lr": 0.02}
    )
    result = train(config, tmp_path / "run")
    assert len(result.test_error) == 2
    assert max(result.test_error) < 0.7
    assert result.summary["model"] == "small_cnn"
    assert result.summary["arguments"] == {"num_classes": 10, "in_channels": 1, "width": 8}
    info = read_info(tmp_path / "run")
    assert (info.model, info.module) == ("small_cnn", __name__)
    model = load(tmp_path / "run")
    assert isinstance(model, SmallCNN)
    assert not model.training
    data = config.data.load()
    loader = config.data.evaluation_loader(data.test, data, torch.device("cpu"))
    found = evaluate(model, loader, split="test")
    assert list(found.error) == result.test_error


def test_the_combined_gradient_is_osgds(tiny: Tiny) -> None:
    """Against torch's own gradients and the formula: g1 + (g2 - its projection on g1)."""
    config = tiny(model={**MODEL, "options": {"width": 2}}, method={"name": "osgd"})
    network = config.model.build(10, 1).double().eval()
    step = TrainStep(config, make_phase(config, network, 0), torch.device("cpu"))
    images, labels = torch.randn(16, 1, 8, 8).double(), torch.arange(16) % 10
    parameters = list(network.parameters())
    flat = []
    for out in network(images):
        loss = nn.functional.cross_entropy(out, labels)
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        flat.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for p, g in zip(parameters, grads, strict=True)
                ]
            )
        )
    losses = [nn.functional.cross_entropy(out, labels) for out in network(images)]
    step.backward(losses)
    first, second = flat
    wanted = first + second - (second @ first) / (first @ first) * first
    found = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: model["name"])
def test_an_interrupted_run_equals_an_uninterrupted_one(
    tmp_path: Path, tiny: Tiny, model: dict[str, Any]
) -> None:
    config = tiny(model=model, method={"name": "osgd"})
    whole = train(config, tmp_path / "whole")

    class Impatient(NullReporter):
        batches = 0

        def batch(self, label: str, images: int) -> None:
            self.batches += 1
            if self.batches == 7:  # in the second epoch of five batches
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="epoch 2, batch 3 of 5"):
        train(config, tmp_path / "parts", reporter=Impatient())
    result = train(None, tmp_path / "parts", resume=True)
    assert result.test_error == whole.test_error
    weights = [load(tmp_path / name).state_dict() for name in ("whole", "parts")]
    assert same(*weights)
    x = torch.randn(5, 1, 8, 8)
    outputs = load(tmp_path / "whole")(x)
    with AnytimePredictor(tmp_path / "parts") as predictor:
        assert predictor.num_stages == len(outputs) == 2
        found = predictor.predict(x, deadline=60)
        assert found.stage == 2
        torch.testing.assert_close(found.logits, outputs[-1])
        stages = [row.logits for row in predictor.stream(x)]
        for one, wanted in zip(stages, outputs, strict=True):
            torch.testing.assert_close(one, wanted)


def test_a_frozen_body_stays_as_it_is(tmp_path: Path, tiny: Tiny) -> None:
    model = SmallCNN(10, 1, 4)
    model.first.requires_grad_(False)
    trained = make_phase(tiny(method={"name": "osgd"}), model, 0).parameters
    assert len(trained) == len(list(model.parameters())) - 4
    assert all(parameter.requires_grad for parameter in trained)
    before = {name: value.clone() for name, value in model.first.named_parameters()}
    train(tiny(model=MODEL, method={"name": "osgd"}), tmp_path / "run", model=model)
    after = dict(model.first.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in after.values())
    assert all(parameter.requires_grad for parameter in model.heads.parameters())


def test_weights_of_a_network_that_no_factory_made(tmp_path: Path, tiny: Tiny) -> None:
    model = SmallCNN(10, 1, 4)
    result = train(tiny(), tmp_path / "run", model=model)
    assert result.summary["model"] == "SmallCNN"
    with pytest.raises(RunFolderError, match="that no registered function made: build it") as info:
        load(tmp_path / "run")
    assert "\n" not in str(info.value)


def test_training_needs_no_stages(tmp_path: Path, tiny: Tiny) -> None:
    class Heads(nn.Module):
        num_stages = 2

        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(64, 10) for _ in range(2))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [head(x.flatten(1)) for head in self.heads]

    assert len(train(tiny(), tmp_path / "run", model=Heads()).test_error) == 2
    with pytest.raises(TypeError, match="training needs a network with num_stages"):
        train(tiny(), tmp_path / "other", model=nn.Linear(64, 10))


def refused(tiny: Tiny, **sections: Any) -> str:
    """The one line with which a run is refused before it writes anything."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with pytest.raises(ConfigError) as caught:
            train(tiny(model=MODEL, **sections), path)
        assert not path.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_needs_more_than_the_protocol_names_the_method(tiny: Tiny) -> None:
    found = refused(tiny, method={"name": "greedy"})
    assert "greedy training needs a network with stage_modules" in found
    assert "SmallCNN" in found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"growth": [[1, 1]]}, "small_cnn has no option 'growth'"),
        ({"independent": 1}, "small_cnn has no option 'independent'"),
        ({"stem": "cifar"}, "small_cnn has no option 'stem'"),
        ({"base_width": 2}, "small_cnn has no option 'base_width'"),
        ({"options": {"widht": 2}}, "did you mean 'width'"),
    ],
)
def test_options_of_nested_networks_are_refused(
    tiny: Tiny, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(tiny(model={**MODEL, **options}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Wrong(nn.Module):
    """forward gives what it is told to."""

    num_stages = 2

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give, self.head = give, nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        return self.give(self.head(x.flatten(1)))


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda out: out, "must return a list of num_stages = 2 logits [2, 10], found Tensor"),
        (lambda out: [out], "found [[2, 10]]"),
        (lambda out: [out, out[:, :5]], "found [[2, 10], [2, 5]]"),
        (lambda out: [out, None], "NoneType"),
        (lambda out: out @ out, "must take images [2, 1, 8, 8] of digits"),
    ],
)
def test_outputs_that_are_no_logits_of_the_classes(
    tiny: Tiny, tmp_path: Path, give: Callable[[Tensor], Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(tiny(), tmp_path / "run", model=Wrong(give))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "channels", "words"),
    [
        (100, 1, "must return a list of num_stages = 2 logits [2, 10], found [[2, 100], [2, 100]]"),
        (5, 1, "found [[2, 5], [2, 5]]"),
        (10, 3, "must take images [2, 1, 8, 8] of digits"),
    ],
)
def test_a_nested_network_of_other_classes_or_channels(
    tiny: Tiny, tmp_path: Path, classes: int, channels: int, words: str
) -> None:
    model = create_model(
        "width_nested_resnet10", num_classes=classes, in_channels=channels, growth=((1, 1), (2, 1))
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        train(tiny(), tmp_path / "run", model=model)
    assert not (tmp_path / "run").exists()


def test_nothing_to_train_and_state_that_no_file_holds(tiny: Tiny) -> None:
    data, cpu = tiny().data.load(), torch.device("cpu")
    model = SmallCNN(10, 1, 4)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="parameters that require a gradient, found none"):
        check_network(model, data, cpu)

    class Extra(SmallCNN):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(ConfigError, match="found _extra_state of type dict"):
        check_network(Extra(10, 1, 4), data, cpu)


def test_the_check_changes_nothing(tiny: Tiny) -> None:
    """Neither weights, statistics, modes nor the random numbers that follow."""

    class Noisy(SmallCNN):
        def forward(self, x: Tensor) -> list[Tensor]:
            return super().forward(x + torch.randn_like(x))

    data = tiny().data.load()
    model = Noisy(10, 1, 4).train()
    model.first.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_network(model, data, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(before, model.state_dict())
    assert model.training
    assert not model.first.training


def test_compiled_as_a_whole_it_says_so(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(
        "anynest.training.step.compile_for_tasks", lambda *given: compiled.append(given)
    )
    config = tiny(model=MODEL, method={"name": "osgd"}, run={"compile": True})
    network = config.model.build(10, 1)
    step = TrainStep(config, make_phase(config, network, 0), torch.device("cpu"))
    assert compiled == [(network,)]
    assert "SmallCNN has no called_nodes()" in step.remark


def test_the_reporter_names_the_network(tmp_path: Path, tiny: Tiny) -> None:
    said: list[str] = []

    class Reporter(NullReporter):
        def say(self, text: str) -> None:
            said.append(text)

    train(tiny(model=MODEL, schedule={"epochs": 1}), tmp_path / "run", reporter=Reporter())
    assert any(line.startswith("small_cnn, osgd, digits") for line in said)
