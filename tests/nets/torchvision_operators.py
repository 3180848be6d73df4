"""Two operators without which torchvision, built for another torch, cannot be imported."""

import contextlib
from functools import cache

import torch

OPERATORS = ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a) -> Tensor")


@cache  # the operators live as long as the library does
def define() -> torch.library.Library:
    """Define those that are missing, so that torchvision and what imports it can be imported."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        with contextlib.suppress(RuntimeError):  # the wheel has it
            library.define(operator)
    return library
