"""What docs/multitask.md says: its examples run, and what it says of weights and cosines holds."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, Stats

EXAMPLES = re.findall(
    r"```python\n(.*?)```",
    Path(__file__).parents[2].joinpath("docs/multitask.md").read_text(),
    re.S,
)


@pytest.mark.parametrize("number", range(2))
def test_examples_run(number: int) -> None:
    assert len(EXAMPLES) == 2
    if "torchjd" in EXAMPLES[number]:
        pytest.importorskip("torchjd")
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[number], "docs/multitask.md", "exec"), names)
    assert isinstance(names["stats"], Stats)


def step(first: list[float], second: list[float]) -> tuple[Tensor, Tensor]:
    """The update and the first loss's weight, of losses with these gradients."""
    w = nn.Parameter(torch.zeros(2))
    losses = {"first": w @ torch.tensor(first), "second": w @ torch.tensor(second)}
    stats = OSGD().backward(losses, [w])
    assert stats["second"].loss_weight.item() == 1  # the lowest task's
    assert w.grad is not None
    return w.grad, stats["first"].loss_weight


def test_the_sign_of_the_cosine_says_on_which_side_of_1_the_weight_is() -> None:
    for second, low, high in (
        ([0.0, 3.0], 1.0, 1.0),  # nothing in common: the sum
        ([0.2, 3.0], 0.5, 0.99),  # agree
        ([-0.2, 3.0], 1.01, 1.5),  # conflict
        ([3.0, 1.0], -9.0, -0.5),  # so large and aligned that the step is held back
    ):
        update, weight = step([1.0, 0.0], second)
        assert low <= weight.item() <= high
        assert update[0].item() == pytest.approx(1)  # what its own gradient alone would do
