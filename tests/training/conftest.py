"""A run that takes a second: two narrow stages on the digits, five batches an epoch."""

from collections.abc import Callable
from typing import Any

import pytest

from anynest.training import TrainConfig

TINY: dict[str, dict[str, Any]] = {
    "model": {"name": "width_nested_resnet10", "growth": [[1, 1], [2, 1]], "base_width": 2},
    "data": {"source": "digits", "batch_size": 256},
    "schedule": {"epochs": 2},
    "run": {"device": "cpu", "threads": 1},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """``tiny(method={"name": "osgd"})``: the tiny config with some settings changed."""

    def build(**sections: dict[str, Any]) -> TrainConfig:
        names = {*TINY, *sections}
        return TrainConfig.from_json(
            {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in names}
        )

    return build
