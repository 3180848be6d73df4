"""Self-distillation, averaged weights, and no weight decay on norms, against plain references."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anynest import load
from anynest.multitask import list_methods
from anynest.training import ConfigError, TrainConfig, train
from anynest.training.evaluation import evaluate
from anynest.training.step import TrainStep
from anynest.training.training_phases import make_phase
from anynest.training.weight_average import WeightAverage

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def batch(number: int, stages: int = 3) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(number)
    logits = [3 * torch.randn(7, 5, generator=generator).requires_grad_() for _ in range(stages)]
    return logits, torch.randint(5, (7,), generator=generator)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_distillation_is_its_formula(tiny: Tiny, weight: float, smoothing: float) -> None:
    """In plain float64 arithmetic: (1 - W) CE + W KL(teacher || student), the last stage CE."""
    method = tiny(method={"distill": weight, "label_smoothing": smoothing}).method
    logits, labels = batch(0)
    found = method.losses(logits, labels)
    p = [out.detach().double().softmax(1) for out in logits]
    targets = (1 - smoothing) * nn.functional.one_hot(labels, 5).double() + smoothing / 5
    for stage, loss in enumerate(found):
        entropy = -(targets * p[stage].log()).sum(1).mean()
        divergence = (p[-1] * (p[-1] / p[stage]).log()).sum(1).mean()
        share = weight if stage < 2 else 0.0
        wanted = (1 - share) * entropy + share * divergence
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)


def test_distillation_keeps_each_loss_in_its_stage(tiny: Tiny) -> None:
    """The teacher is detached: no earlier loss trains the last stage."""
    logits, labels = batch(1)
    losses = tiny(method={"distill": 0.7}).method.losses(logits, labels)
    for stage, loss in enumerate(losses):
        grads = torch.autograd.grad(loss, logits, allow_unused=True, retain_graph=True)
        assert [grad is not None for grad in grads] == [other == stage for other in range(3)]
    # of soft targets: W (student - teacher) + (1 - W) (student - one-hot)
    p = [out.detach().softmax(1) for out in logits]
    hard = nn.functional.one_hot(labels, 5)
    wanted = (0.7 * (p[0] - p[2]) + 0.3 * (p[0] - hard)) / len(labels)
    torch.testing.assert_close(torch.autograd.grad(losses[0], logits[0])[0], wanted)


def test_bounds_are_checked(tiny: Tiny) -> None:
    for sections, message in (
        ({"method": {"distill": 1.5}}, r"method.distill must be at most 1, found 1.5"),
        ({"method": {"distill": -0.1}}, r"method.distill must be at least 0, found -0.1"),
        ({"method": {"name": "greedy", "distill": 0.5}}, r"no meaning for greedy.*found 0.5"),
        ({"optimizer": {"ema": 1.0}}, r"must be above 0 and below 1, found 1.0"),
        ({"optimizer": {"ema": 0.0}}, r"optimizer.ema must be above 0, found 0.0"),
        (
            {"optimizer": {"name": "rprop", "decay_norms": False}},
            r"optimizer rprop has no weight decay, found optimizer.decay_norms false",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny(**sections)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_and_biases_without_decay(tiny: Tiny, optimizer: str) -> None:
    """With gradients of zero, a step changes exactly what weight decay acts on."""
    for decay_norms in (True, False):
        config = tiny(
            optimizer={
                "name": optimizer,
                "lr": 0.5,
                "weight_decay": 0.1,
                "decay_norms": decay_norms,
            }
        )
        phase = make_phase(config, config.model.build(10, 1), 0)
        for parameter in phase.parameters:
            nn.init.constant_(parameter, 1.0)
        step = TrainStep(config, phase, CPU)
        assert sum(len(g["params"]) for g in step.optimizer.param_groups) == len(phase.parameters)
        for parameter in phase.parameters:
            parameter.grad = torch.zeros_like(parameter)
        step.optimizer.step()
        for parameter in phase.parameters:
            decays = decay_norms or parameter.dim() >= 2
            assert bool((parameter != 1.0).all()) == decays
            assert bool((parameter == 1.0).all()) != decays


def test_average_is_its_formula(tiny: Tiny) -> None:
    """Over ten steps, beside a plain loop in float64; batch-norm statistics included."""
    config = tiny(optimizer={"ema": 0.6})
    torch.manual_seed(0)
    step = TrainStep(config, make_phase(config, config.model.build(10, 1), 0), CPU)
    step.phase.train_mode()
    network = step.phase.network
    assert step.average is not None
    wanted = {name: tensor.double().clone() for name, tensor in network.state_dict().items()}
    for number in range(1, 11):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(32, 1, 8, 8, generator=generator)
        step(images, torch.randint(10, (32,), generator=generator))
        decay = min(0.6, (1 + number) / (10 + number))
        for name, tensor in network.state_dict().items():
            kept = decay if tensor.is_floating_point() else 0.0
            wanted[name] = kept * wanted[name] + (1 - kept) * tensor.double()
    assert set(wanted) == set(step.average.tensors)
    for name, tensor in step.average.tensors.items():
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)
    # calling it is calling a copy with these weights, and leaves the network as it is
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    other = copy.deepcopy(network).eval()
    other.load_state_dict(step.average.tensors)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        averaged = step.evaluated.eval()
        for ours, theirs in zip(averaged(x), other(x), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(before[n], tensor) for n, tensor in network.state_dict().items())
    step.finish()
    assert all(torch.equal(step.average.tensors[n], t) for n, t in network.state_dict().items())


@pytest.mark.parametrize("method", ["sgd-sum", "greedy"])
def test_averages_are_evaluated_and_saved(tmp_path: Path, tiny: Tiny, method: str) -> None:
    """Each phase ends with its averages: the weights file, the summary and the validation lines
    are of these, and what an earlier phase ended with stays."""
    seen: list[dict[str, Tensor]] = []
    config = tiny(method={"name": method}, optimizer={"ema": 0.9}, schedule={"epochs": 1})
    data = config.data.load()
    torch.manual_seed(0)
    model = config.model.build(data.num_classes, data.in_channels)
    real = WeightAverage.apply

    def watched(self: WeightAverage) -> None:
        raw = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        real(self)
        assert any(not torch.equal(raw[n], t) for n, t in self.network.state_dict().items())
        seen.append({n: t.clone() for n, t in model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightAverage, "apply", watched)
        result = train(config, tmp_path / "run", data=data, model=model)
    assert len(seen) == (2 if method == "greedy" else 1)
    saved = load_file(tmp_path / "run" / "weights.safetensors")
    assert saved.keys() == seen[-1].keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in seen[-1].items())
    if method == "greedy":
        early = {
            id(t) for m in model.stage_modules(1) for t in m.state_dict(keep_vars=True).values()
        }
        first = [n for n, t in model.state_dict(keep_vars=True).items() if id(t) in early]
        assert first
        assert all(torch.equal(seen[0][name], saved[name]) for name in first)
    loader = config.data.evaluation_loader(data.test, data, CPU)
    again = evaluate(load(tmp_path / "run"), loader, split="test")
    assert list(again.error) == result.summary["test"]["error"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    validation = config.data.evaluation_loader(data.validation, data, CPU)
    held_out = evaluate(load(tmp_path / "run"), validation)
    last = json.loads(lines[-1])["validation"]["loss"]
    index = -1  # of the stage that the last phase trained
    assert math.isclose(last[index], held_out.loss[index], rel_tol=1e-5)


@pytest.mark.parametrize("method", [*list_methods(), "greedy"])
def test_recipes_compose_with_every_method(tmp_path: Path, tiny: Tiny, method: str) -> None:
    more: dict[str, Any] = {} if method == "greedy" else {"distill": 0.5}
    config = tiny(
        method={"name": method, **more},
        optimizer={"ema": 0.8, "decay_norms": False},
        schedule={"epochs": 1},
    )
    assert TrainConfig.from_json(config.to_json()) == config
    result = train(config, tmp_path / "run")
    assert all(error < 0.95 for error in result.test_error)
