"""A run that takes a third of a second: two narrow stages, five batches an epoch, no picture."""

from collections.abc import Callable
from typing import Any

import pytest

from anynest.store import write_whole
from anynest.training import TrainConfig
from anynest.training.output import summary

TINY: dict[str, dict[str, Any]] = {
    "model": {"name": "width_nested_resnet10", "growth": [[1, 1], [2, 1]], "base_width": 2},
    "data": {"source": "digits", "batch_size": 64, "limit": 320},
    "schedule": {"epochs": 2},
    "run": {"device": "cpu", "threads": 1},
}


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as such a run does. The module's `whole` runs of test_train draw."""
    monkeypatch.setattr(summary, "plot_run", lambda history, title, path: write_whole(path, b""))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """``tiny(method={"name": "osgd"})``: the tiny config with some settings changed."""

    def build(**sections: dict[str, Any]) -> TrainConfig:
        names = {*TINY, *sections}
        return TrainConfig.from_json(
            {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in names}
        )

    return build
