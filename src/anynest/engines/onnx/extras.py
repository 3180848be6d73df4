"""The packages that only the ONNX side of this room needs, imported when used."""

from importlib import import_module
from typing import Any


def onnx() -> Any:
    """The package ``onnx``; ValueError, one line, where it is not installed."""
    return _imported("onnx", "writing and reading ONNX graphs")


def onnxruntime() -> Any:
    """The package ``onnxruntime``; ValueError, one line, where it is not installed."""
    return _imported("onnxruntime", "the backend 'onnxruntime'")


def _imported(name: str, purpose: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs the package {name}, which is not installed: "
            "pip install 'anynest[onnx]'"
        ) from error
