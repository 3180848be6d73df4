"""Backbones of other libraries, where they are installed."""

import warnings
from typing import Any

import pytest
import torchvision_operators


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """torchvision, whose import needs two operators that its wheel for another torch lacks."""
    torchvision_operators.define()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision
    except ImportError as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
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
