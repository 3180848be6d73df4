"""What a network's times and costs depend on: the sizes and types of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from .times import ProfileError, whole_number

if TYPE_CHECKING:
    from torch import Tensor

    from ..engines.inputs import Inputs

MAX_ELEMENTS = 1 << 28  # of one sample
IMAGES = "images"  # the name of a tensor where the one input is images


def as_named(x: Inputs) -> Mapping[str, Tensor]:
    """Inputs by name; a tensor is images."""
    return x if isinstance(x, Mapping) else {IMAGES: x}


@dataclass(frozen=True)
class InputSize:
    """Per input: its name, dtype and shape without the batch."""

    rows: tuple[tuple[str, str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> InputSize:
        """The size of inputs."""
        return cls(
            tuple(
                (name, str(value.dtype).removeprefix("torch."), tuple(value.shape[1:]))
                for name, value in inputs.items()
            )
        )

    def blank(self) -> dict[str, Tensor]:
        """A batch of one, of ones: valid as tokens, masks and values."""
        import torch

        return {
            name: torch.ones(1, *shape, dtype=getattr(torch, dtype))
            for name, dtype, shape in self.rows
        }

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [{"name": n, "dtype": d, "shape": list(shape)} for n, d, shape in self.rows]

    @classmethod
    def from_json(cls, data: Any) -> InputSize:
        """What ``to_json`` gave; ProfileError for anything else."""
        import torch

        if not isinstance(data, list) or not data:
            raise ProfileError(f"inputs must be a list of inputs, found {str(data)[:60]!r}")
        rows = []
        for entry in data:
            if not isinstance(entry, dict) or set(entry) != {"name", "dtype", "shape"}:
                raise ProfileError(
                    f"inputs must have name, dtype and shape, found {str(entry)[:60]!r}"
                )
            name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
            if not isinstance(name, str) or not isinstance(shape, list):
                raise ProfileError(
                    f"inputs must have a name and a shape, found {str(entry)[:60]!r}"
                )
            if not isinstance(dtype, str) or not isinstance(
                getattr(torch, dtype, None), torch.dtype
            ):
                raise ProfileError(f"a dtype of inputs must be one of torch, found {dtype!r:.60}")
            sides = tuple(whole_number(f"a side of {name}", side) for side in shape)
            if prod(sides) > MAX_ELEMENTS:
                raise ProfileError(f"{name} must have at most {MAX_ELEMENTS} elements a sample")
            rows.append((name, dtype, sides))
        return cls(tuple(rows))
