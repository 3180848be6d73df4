"""Tensors of what modules return: tuples, dicts and dataclasses hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Read = int | str | Callable[[Any], Tensor] | None


def items(value: Any) -> list[tuple[int | str, Any]]:
    """The keys and parts of a value that holds others; empty for anything else."""
    if isinstance(value, Mapping):  # includes the outputs of transformers
        return list(value.items())
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", range(len(value)))
        return list(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def tensors(value: Any) -> list[tuple[int | str, Tensor]]:
    """The parts of a value that are tensors."""
    return [(key, part) for key, part in items(value) if isinstance(part, Tensor)]


def describe(value: Any) -> str:
    """A value in an error message."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    held = tensors(value)
    if not held:
        return f"a {type(value).__name__}"
    return f"a {type(value).__name__} with the tensors " + ", ".join(str(key) for key, _ in held)


def tensor_of(value: Any, read: Read, what: str, *, first: bool) -> Tensor:
    """The tensor that ``read`` picks.

    Args:
        value: what a module returned.
        read: an index, a key or field, a function of ``value``, or None.
        what: names the value and the argument to change in messages.
        first: without ``read``, whether the first of several tensors is meant.

    Raises:
        ValueError: there is no such tensor, or several.
    """
    found: Any = value
    if callable(read):
        found = read(value)
    elif read is not None:
        if isinstance(read, int):
            parts: Mapping[Any, Any] = dict(enumerate(part for _, part in items(value)))
        else:
            parts = dict(items(value))
        if read not in parts:
            raise ValueError(f"{what} has no {read!r}, found {describe(value)}")
        found = parts[read]
    elif not isinstance(value, Tensor):
        held = tensors(value)
        if len(held) == 1 or (held and first):
            found = held[0][1]
    if not isinstance(found, Tensor):
        raise ValueError(f"{what} must be one tensor, found {describe(found)}; name one to read")
    return found
