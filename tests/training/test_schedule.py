"""The learning rate's shape."""

from itertools import pairwise

import pytest
import torch

from anynest.training import ScheduleConfig
from anynest.training.step import set_rate


def test_fewer_epochs_keep_the_shape() -> None:
    """3 epochs of 10 batches: drops after 0.9, 1.8 and 2.4 epochs."""
    schedule = ScheduleConfig(epochs=3)
    rates = [schedule.rate(batch, 10) for batch in range(30)]
    drops = [b for b in range(1, 30) if rates[b] != rates[b - 1]]
    assert drops == [9, 18, 24]
    assert rates[-1] == pytest.approx(0.2**3)


def test_milestones_from_1_on_are_epochs() -> None:
    schedule = ScheduleConfig(epochs=10, milestones=(2.0, 4.5), factor=0.5)
    assert [schedule.rate(b, 4) for b in (7, 8, 17, 18)] == [1.0, 0.5, 0.5, 0.25]


def test_warmup_and_cosine() -> None:
    schedule = ScheduleConfig(epochs=4, shape="cosine", warmup_epochs=1)
    rates = [schedule.rate(b, 5) for b in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[5:]))
    assert 0 < rates[-1] < 0.02


def test_the_rate_is_set_on_every_group() -> None:
    schedule = ScheduleConfig(epochs=2, milestones=(0.5,), factor=0.1)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (3.0, 1.0)]
    optimizer = torch.optim.SGD(groups)
    seen = []
    for batch in range(4):
        set_rate(optimizer, schedule.rate(batch, 2))
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert seen == [[3.0, 1.0], [3.0, 1.0], pytest.approx([0.3, 0.1]), pytest.approx([0.3, 0.1])]
