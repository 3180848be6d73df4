"""Names of methods, how combiners show themselves, and one frozen step of each."""

import pytest
import torch
from torch import nn

from anynest.multitask import (
    OSGD,
    Combiner,
    NormSGD,
    WeightedSGD,
    list_methods,
    make_combiner,
    register_method,
    registry,
)


def test_the_methods_are_these() -> None:
    assert list_methods() == sorted(list_methods())
    assert set(list_methods()) >= set(FROZEN)


def test_sgd_is_sgd_mean() -> None:
    combiner = make_combiner("sgd")
    assert isinstance(combiner, WeightedSGD)
    assert combiner.reduction == "mean"


@pytest.mark.parametrize(
    ("combiner", "shown"),
    [
        (
            OSGD(),
            "OSGD(priority=None, normalize=False, reduction='sum', C=0.5, calibration_steps=100, "
            "on_nonfinite='raise', refresh=1, metric=None)",
        ),
        (
            OSGD(["b", "a"], normalize=True, reduction="mean", C=1, on_nonfinite="skip", refresh=4),
            "OSGD(priority=('b', 'a'), normalize=True, reduction='mean', C=1.0, "
            "calibration_steps=100, on_nonfinite='skip', refresh=4, metric=None)",
        ),
        (
            NormSGD("calibrated"),
            "NormSGD(C='calibrated', calibration_steps=100, on_nonfinite='raise')",
        ),
        (
            WeightedSGD([1, 2]),
            "WeightedSGD(weights=(1.0, 2.0), reduction='mean', on_nonfinite='raise')",
        ),
        (
            WeightedSGD({"a": 1, "b": 2}, "sum"),
            "WeightedSGD(weights={'a': 1.0, 'b': 2.0}, reduction='sum', on_nonfinite='raise')",
        ),
    ],
)
def test_a_combiner_shows_every_option(combiner: Combiner, shown: str) -> None:
    assert repr(combiner) == shown
    assert repr(eval(shown)) == shown


@pytest.mark.parametrize("name", ["osgd", "sgd"])
def test_a_name_is_taken_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"method '{name}' is registered already"):
        register_method(name, OSGD)


def test_a_factory_may_take_any_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register_method("mine", lambda **options: OSGD(**options))
    combiner = make_combiner("mine", refresh=2)
    assert isinstance(combiner, OSGD)
    assert combiner.refresh == 2


# On two losses whose gradients are (3, 4 | -) and (0, 10 | 6), the bar parting shared from own.
FROZEN = {
    "sgd-mean": ([1.5, 7.0], [3.0]),
    "sgd-sum": ([3.0, 14.0], [6.0]),
    "sgd-participants": ([1.5, 7.0], [6.0]),
    "normsgd": ([0.2121320, 0.6541480], [0.4455664]),
    "osgd": ([-1.8, 7.6], [6.0]),
    "osgd-mean": ([-0.9, 3.8], [3.0]),
    "osgd-norm": ([0.0678110, 0.8330253], [0.4455664]),
}


@pytest.mark.parametrize("method", FROZEN)
def test_each_method_gives_its_frozen_values(method: str) -> None:
    shared, own = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    losses = [shared @ torch.tensor([3.0, 4.0]), 10 * shared[1] + 6 * own.sum()]
    make_combiner(method).backward(losses, [shared, own])
    want_shared, want_own = FROZEN[method]
    torch.testing.assert_close(shared.grad, torch.tensor(want_shared))
    torch.testing.assert_close(own.grad, torch.tensor(want_own))
