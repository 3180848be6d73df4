"""The inputs of a network: named tensors, taken from an example."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Example = Tensor | Sequence[Tensor] | Mapping[str, Any]


class Inputs:
    """How the body is called.

    Args:
        body: the network.
        example: a tensor, a tuple of tensors, or keyword arguments of which those that are not
            tensors are the same in every call.

    Attributes:
        names: the tensors' names, in the order of positional inputs.
        example: two or more rows of each.

    Raises:
        ValueError: the example holds no tensors, or they differ in the size of dimension 0.
    """

    def __init__(self, body: nn.Module, example: Example) -> None:
        self.constants: dict[str, Any] = {}
        self.by_name = isinstance(example, Mapping)
        if isinstance(example, Mapping):
            given = {k: v for k, v in example.items() if isinstance(v, Tensor)}
            self.constants = {k: v for k, v in example.items() if not isinstance(v, Tensor)}
            self.names = tuple(given)
            tensors = list(given.values())
        else:
            tensors = [example] if isinstance(example, Tensor) else list(example)
            self.names = _positional_names(body, len(tensors))
        wrong = [type(value).__name__ for value in tensors if not isinstance(value, Tensor)]
        if wrong or not tensors:
            raise ValueError(
                "example must hold tensors, found "
                f"{', '.join(wrong) or 'none'}; give a tensor, a tuple of tensors or a dict of "
                "keyword arguments"
            )
        rows = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
        if len(rows) > 1 or 0 in rows:
            raise ValueError(
                "dimension 0 of each example tensor must be the batch, found shapes "
                f"{[list(tensor.shape) for tensor in tensors]}"
            )
        if rows == {1}:  # two rows tell the batch from dimensions of size 1
            tensors = [torch.cat([tensor, tensor]) for tensor in tensors]
        self.example = tuple(tensor.detach().clone() for tensor in tensors)
        self._kind = _kind(body)

    def example_like(self, body: nn.Module) -> tuple[Tensor, ...]:
        """The example on the body's device, cast as the body was since the inputs were given."""
        dtype, device = _kind(body)
        cast = dtype != self._kind[0]
        return tuple(
            tensor.to(device, dtype if cast and tensor.is_floating_point() else None)
            for tensor in self.example
        )

    def bind(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The tensors in the order of ``names``; TypeError for missing and unknown ones."""
        if not named and len(inputs) == len(self.names):
            return tuple(inputs)
        bound = dict(zip(self.names, inputs, strict=False)) | dict(named)
        if len(inputs) + len(named) != len(self.names) or set(bound) != set(self.names):
            raise TypeError(
                f"inputs must be {', '.join(self.names)}, found {len(inputs)} by position and "
                f"{', '.join(named) or 'none'} by name"
            )
        return tuple(bound[name] for name in self.names)

    def call(self, body: Any, tensors: Sequence[Tensor]) -> Any:
        """The body's own output."""
        if self.by_name:
            return body(**dict(zip(self.names, tensors, strict=True)), **self.constants)
        return body(*tensors)


def _kind(body: nn.Module) -> tuple[torch.dtype | None, torch.device | None]:
    """Type and device of the body's first floating-point parameter."""
    for parameter in body.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return None, None


def _positional_names(body: nn.Module, count: int) -> tuple[str, ...]:
    """Names of the first inputs, from the signature of ``forward``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(body.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return tuple(names[:count]) + tuple(f"input{n}" for n in range(len(names), count))
