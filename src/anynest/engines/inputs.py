"""The inputs of a network: named tensors with the batch as dimension 0.

A network with ``in_channels`` takes images; any other takes what its ``forward`` takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

Inputs = Tensor | Mapping[str, Tensor]

NESTED_INPUTS = ("x",)  # of the paper's networks, as ``AnytimeNetwork.forward`` names it


@dataclass(frozen=True)
class InputSpec:
    """What a network takes.

    Attributes:
        names: of all inputs, in the order of its arguments.
        optional: those that may be left out.
        channels: C, where the one input is images ``[B, C, H, W]``; else None.
        dtype: of floating-point inputs; None for any.
    """

    names: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    channels: int | None = None
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, network: nn.Module) -> InputSpec:
        """From ``input_names``, else the signatures of ``forward`` and ``stages``.

        Raises:
            ValueError: neither names an input.
        """
        declared = getattr(network, "input_names", None)
        if declared is not None:
            names, optional = tuple(declared), frozenset[str]()
        else:
            names, optional = _signature(network.forward)
            if not names:
                names, optional = _signature(getattr(network, "stages", None))
        if not names:
            raise ValueError(
                f"input_names must name the inputs of {type(network).__name__}, whose forward "
                "names none: set input_names"
            )
        return cls(names, optional, whole(network, "in_channels"), floating_dtype(network))

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the inputs that may not be left out."""
        return tuple(name for name in self.names if name not in self.optional)

    def all_required(self) -> InputSpec:
        """The same without the optional inputs: what a first segment takes."""
        return replace(self, names=self.required or self.names[:1], optional=frozenset())

    def read(self, x: Inputs) -> dict[str, Tensor]:
        """The inputs by name, in order; one tensor is the first input.

        Images are converted to ``dtype``. Nothing is copied otherwise.

        Raises:
            ValueError: a missing, unknown or unfit input.
            TypeError: neither a tensor nor a dict of tensors.
        """
        if isinstance(x, Tensor):
            if len(self.required) > 1:
                raise ValueError(
                    f"this network takes the inputs {', '.join(self.required)}, found one tensor: "
                    "pass a dict of named tensors"
                )
            found = {self.names[0]: x}
        elif isinstance(x, Mapping):
            found = self._named(x)
        else:
            raise TypeError(
                f"inputs must be a tensor or a dict of named tensors, found {type(x).__name__}"
            )
        if self.channels is not None:
            return {name: self._images(value) for name, value in found.items()}
        for name, value in found.items():
            self._check(name, value)
        sizes = {name: len(value) for name, value in found.items()}
        if len(set(sizes.values())) > 1:
            text = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"inputs must have one batch size as dimension 0, found {text}")
        return {name: value.detach() for name, value in found.items()}

    def _named(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        unknown = [name for name in x if name not in self.names]
        missing = [name for name in self.required if name not in x]
        if unknown or missing or not x:
            raise ValueError(
                f"the inputs must be {self.describe()}, found {', '.join(map(str, x)) or 'none'}"
            )
        return {name: x[name] for name in self.names if name in x}

    def describe(self) -> str:
        """
        >>> InputSpec(("ids", "mask"), frozenset(["mask"])).describe()
        'ids, mask (optional)'
        """
        return ", ".join(
            f"{name} (optional)" if name in self.optional else name for name in self.names
        )

    def _images(self, x: Tensor) -> Tensor:
        assert self.channels is not None
        if not isinstance(x, Tensor):
            raise TypeError(f"images must be a tensor, found {type(x).__name__}")
        check_images(x, self.channels, self.dtype)
        return x.detach().to(self.dtype)

    def _check(self, name: str, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"input {name} must be a tensor, found {type(x).__name__}")
        if not x.dim() or 0 in x.shape:
            raise ValueError(
                f"input {name} must have the batch as dimension 0 and no dimension of 0, found "
                f"{list(x.shape)}"
            )
        if x.is_meta or x.layout != torch.strided:
            raise ValueError(
                f"input {name} must be a dense tensor with values, found layout {x.layout} on "
                f"device {x.device}"
            )
        if self.dtype is not None and x.is_floating_point() and x.dtype != self.dtype:
            raise ValueError(
                f"input {name} must be {self.dtype}, as the network's weights, found {x.dtype}: "
                f"pass {name}.to({self.dtype})"
            )


def check_images(x: Tensor, channels: int, dtype: torch.dtype | None = torch.float32) -> None:
    """ValueError unless ``x`` is ``[B, channels, H, W]`` without an empty dimension.

    float32 images are accepted beside those of ``dtype``.
    """
    if x.dim() != 4 or x.shape[1] != channels or 0 in x.shape:
        raise ValueError(
            f"images must be [batch, {channels}, height, width] with no dimension of 0, found "
            f"{list(x.shape)}"
        )
    if x.dtype not in (torch.float32, dtype):
        raise ValueError(f"images must be float32, found {x.dtype}; scale and normalise them")
    if x.is_meta:
        raise ValueError("images must hold values, found a tensor on the meta device")


def whole(network: object, name: str) -> int | None:
    """An attribute that is a positive int (``num_classes``, ``in_channels``), else None."""
    value = getattr(network, name, None)
    return value if type(value) is int and value > 0 else None


def floating_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the floating-point weights, where they have a single one."""
    found = {weight.dtype for weight in module.parameters() if weight.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def _signature(function: object) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of a function's arguments, and of those with defaults."""
    if not callable(function):
        return (), frozenset()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    found = [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    return (
        tuple(p.name for p in found),
        frozenset(p.name for p in found if p.default is not inspect.Parameter.empty),
    )
