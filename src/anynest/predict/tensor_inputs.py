"""The inputs of networks that take no images: a tensor, or a dict of named tensors.

Every tensor (or NumPy array) has the batch as dimension 0: a single sample is a batch of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engines.inputs import InputSpec
from ..engines.session import Session


class TensorReader:
    """Checks and copies the inputs of one network.

    Args:
        session: its ``inputs``, or ``input_names`` alone, say what it takes.
    """

    def __init__(self, session: Session) -> None:
        found = getattr(session, "inputs", None)
        self.spec = found if isinstance(found, InputSpec) else InputSpec(session.input_names)

    def __call__(self, x: Any) -> tuple[dict[str, Tensor], bool]:
        """Convert one batch.

        Returns:
            New tensors by name, and False: it is a batch.

        Raises:
            ValueError: a missing, unknown or unfit input, in one line.
            TypeError: another type of input.
        """
        given = {n: _tensor(v) for n, v in x.items()} if isinstance(x, Mapping) else _tensor(x)
        return {name: value.clone() for name, value in self.spec.read(given).items()}, False


def _tensor(value: Any) -> Any:
    return from_numpy(value, "inputs") if isinstance(value, np.ndarray) else value


def from_numpy(value: np.ndarray[Any, Any], name: str) -> Tensor:
    """An array as a new tensor; ValueError for what is no number, or no dtype of torch."""
    if value.dtype.kind not in "biufc":
        raise ValueError(f"{name} must be numbers, found an array of {value.dtype}")
    try:  # a copy: torch warns about read-only arrays
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    except TypeError as error:
        raise ValueError(
            f"{name} must have a dtype that torch has, found an array of {value.dtype}: "
            "pass x.astype('float32')"
        ) from error
