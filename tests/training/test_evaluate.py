"""Errors and losses per stage, counted against counting by hand."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from anynest.training import evaluate
from anynest.training.metrics import RunningMetrics


class Batches:
    """A loader of given batches."""

    def __init__(self, *batches: tuple[Tensor, Tensor]) -> None:
        self.given = batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.given[start:]


class TwoStages(nn.Module):
    """Logits: the images themselves, and their negatives."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.norm.eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        assert not self.training
        return [x, -x]


@pytest.mark.parametrize("classes", [4, 10, 12])
def test_against_counting(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (7, 7, 3)
    batches = [
        (torch.randn(n, classes, generator=generator), torch.randint(classes, (n,))) for n in sizes
    ]
    model = TwoStages().train()
    model.norm.eval()
    found = evaluate(model, Batches(*batches), split="test")
    assert model.training
    assert not model.norm.training  # a frozen part stays frozen
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    for stage, logits in enumerate((images, -images)):
        wrong = sum(int(row.argmax()) != int(y) for row, y in zip(logits, labels, strict=True))
        assert found.error[stage] == pytest.approx(wrong / 17)
        assert found.loss[stage] == pytest.approx(
            float(nn.functional.cross_entropy(logits, labels))
        )
        if classes > 10:
            assert found.top5_error is not None
            ranks = logits.argsort(1, descending=True)[:, :5].tolist()
            missed = sum(int(y) not in row for row, y in zip(ranks, labels, strict=True))
            assert found.top5_error[stage] == pytest.approx(missed / 17)
        else:
            assert found.top5_error is None
    assert found.images == 17


def test_an_empty_split() -> None:
    with pytest.raises(ValueError, match="test split has no images"):
        evaluate(TwoStages(), Batches(), split="test")


def test_the_mode_comes_back_after_an_error() -> None:
    model = TwoStages().train()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, Batches((torch.zeros(1, 4), torch.zeros(1).long())), check=stop)
    assert model.training


def test_losses_that_are_not_finite_are_left_out() -> None:
    metrics = RunningMetrics(2, torch.device("cpu"))
    logits = [torch.eye(3), torch.eye(3)]
    metrics.add(torch.tensor([1.0, float("nan")]), logits, torch.arange(3))
    metrics.add(torch.tensor([3.0, 5.0]), logits, torch.arange(3))
    assert metrics.means()["loss"] == [2.0, 5.0]
    assert metrics.means()["error"] == [0.0, 0.0]


def test_cosines_are_averaged() -> None:
    metrics = RunningMetrics(2, torch.device("cpu"))
    assert metrics.cosines() is None
    for value in (0.5, float("nan"), 0.25):
        metrics.add_cosines(torch.tensor([[1.0, value], [value, 1.0]]))
    cosines = metrics.cosines()
    assert cosines is not None
    assert cosines[0][1] == pytest.approx(0.375)
    assert metrics.cosine_batches() == 2
