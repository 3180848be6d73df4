"""Backbones of other libraries, where they are installed."""

import contextlib
import warnings
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """torchvision, whose import needs two operators that its wheel for another torch lacks."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a) -> Tensor"):
        with contextlib.suppress(RuntimeError):  # the wheel has it
            library.define(operator)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision
    except ImportError as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    torchvision._operators = library  # they live as long as it does
    return torchvision


@pytest.fixture(scope="session")
def timm(torchvision: Any) -> Any:
    """timm, which imports torchvision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm", reason="timm is not installed")


@pytest.fixture(scope="session")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")
