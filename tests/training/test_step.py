"""One step: loss scaling, losses that are left out, what is measured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest.multitask import list_methods
from anynest.training import RunError, TrainConfig
from anynest.training.metrics import RunningMetrics
from anynest.training.step import TrainStep
from anynest.training.training_phases import make_phase

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def make_step(config: TrainConfig) -> TrainStep:
    torch.manual_seed(0)
    train_step = TrainStep(config, make_phase(config, config.model.build(10, 1), 0), CPU)
    train_step.phase.train_mode()
    return train_step


def take(train_step: TrainStep, number: int = 0, measure: bool = False) -> RunningMetrics:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(32, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (32,), generator=generator)
    metrics = RunningMetrics(2, CPU)
    output = train_step(images, labels, measure=measure)
    metrics.add(output.losses_S, output.logits, labels)
    metrics.add_cosines(output.cosines)
    return metrics


def weights(train_step: TrainStep) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in train_step.phase.parameters]


def moved(train_step: TrainStep, before: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, weights(train_step), strict=True))


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("method", list_methods())
def test_under_a_scaler_the_update_is_the_unscaled_one(
    tiny: Tiny, method: str, clip: float | None
) -> None:
    config = tiny(method={"name": method}, optimizer={"lr": 1e-4, "clip": clip})
    plain, scaled = make_step(config), make_step(config)
    before = weights(plain)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for number in range(3):
        take(plain, number)
        take(scaled, number)
    assert moved(plain, before)
    for one, other in zip(weights(plain), weights(scaled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_float16_scales(tiny: Tiny) -> None:
    train_step = make_step(tiny(run={"precision": "float16"}))
    assert train_step.scaler.is_enabled()
    before = weights(train_step)
    take(train_step)
    assert moved(train_step, before)
    assert not make_step(tiny(run={"precision": "bf16"})).scaler.is_enabled()


def test_cosines_of_small_losses_under_float16(tiny: Tiny) -> None:
    """Whose gradients would be zeros in float16 without the loss scale."""
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for precision in ("float16", "float32"):
        train_step = make_step(tiny(run={"precision": precision}))
        with train_step.autocast():
            logits = train_step.phase.network(images)
        losses = [1e-7 * logit.float().logsumexp(1).mean() for logit in logits]
        found.append(train_step.cosines(losses, None))
    half, single = found
    assert half is not None
    assert single is not None
    torch.testing.assert_close(half, single, rtol=0, atol=0.02)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("stages", [(2,), (1, 2)])
def test_losses_left_out(tiny: Tiny, precision: str, stages: tuple[int, ...]) -> None:
    """A loss that is not finite is skipped, measured or not; with none left no weight moves."""
    for method in ("sgd-mean", "osgd"):
        config = tiny(method={"name": method, "on_nonfinite": "skip"}, run={"precision": precision})
        train_step = make_step(config)
        for stage in stages:
            torch.nn.init.constant_(train_step.phase.network.head(stage).bias, float("nan"))
        before = weights(train_step)
        metrics = take(train_step, measure=True)
        head = train_step.phase.network.head(1).weight
        assert torch.equal(
            before[[p is head for p in train_step.phase.parameters].index(True)], head
        ) == (len(stages) == 2)
        assert metrics.means()["loss"][1] is None
        assert metrics.cosines() is None


def test_a_loss_that_is_not_finite_is_named(tiny: Tiny) -> None:
    train_step = make_step(tiny())
    torch.nn.init.constant_(train_step.phase.network.head(2).bias, float("nan"))
    with pytest.raises(RunError, match=r"^the loss of stage 2 is nan$"):
        take(train_step)


@pytest.mark.parametrize("name", ["sgd-mean", "osgd"])
def test_cosines(tiny: Tiny, name: str) -> None:
    """Known to OSGD anyway, measured for SGD where asked for: the same numbers."""
    train_step = make_step(tiny(method={"name": name}))
    known: Any = take(train_step, measure=True).cosines()
    reference: Any = take(make_step(tiny(method={"name": "osgd"}))).cosines()
    torch.testing.assert_close(torch.tensor(known), torch.tensor(reference))
    assert (take(train_step, 1).cosines() is None) == (name == "sgd-mean")
