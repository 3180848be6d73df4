"""Argument validation, before any state changes: one line with the rule, the value, the remedy."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from operator import index
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .gradients.task_gradients import wide_dtype


class NonFiniteLossError(ValueError):
    """A loss is NaN or infinite, and ``on_nonfinite`` is "raise"."""


Losses = Sequence[Tensor] | Mapping[str, Tensor]
Names = tuple[str, ...] | None


def check_names(losses: Losses) -> Names:
    """The names of a dict's losses, in its order; None for a list."""
    if not isinstance(losses, Mapping):
        return None
    for name in losses:
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"losses in a dict must have names, found the key {name!r}: pass a dict such as"
                ' {"depth": loss}'
            )
    return tuple(losses)


def check_losses(losses: Losses) -> list[Tensor]:
    """The losses as a list; ValueError or TypeError names the loss and the remedy."""
    if isinstance(losses, Tensor) and losses.dim() == 0:
        raise TypeError("losses must be a list with one scalar per task, found one tensor: [loss]")
    if not isinstance(losses, Iterable):
        raise TypeError(
            f"losses must be a list with one scalar per task, found {type(losses).__name__}: [loss]"
        )
    found = list(losses.values() if isinstance(losses, Mapping) else losses)
    if not found:
        kind = "dict" if isinstance(losses, Mapping) else "list"
        raise ValueError(
            f"losses must hold at least one loss, found an empty {kind}: pass one a task"
        )
    for i, loss in zip(check_names(losses) or range(len(found)), found, strict=True):
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"loss {i} must be a tensor, found {type(loss).__name__}: pass the loss itself, not"
                " its value"
            )
        if loss.numel() != 1:
            raise ValueError(
                f"loss {i} must be a scalar, found shape {tuple(loss.shape)}: reduce it, e.g. by"
                " .mean()"
            )
        if loss.is_complex():
            raise ValueError(
                f"loss {i} must be real, found {loss.dtype}: take .abs() or .real of it"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"loss {i} needs no gradient: compute it from parameters that require one, outside"
                " torch.no_grad() and without .detach()"
            )
    return found


def check_micro_batch(
    losses: Sequence[Tensor],
    leaves: Sequence[Tensor],
    count: int,
    before: Sequence[Tensor],
    names: Names = None,
    names_before: Names = None,
) -> None:
    """ValueError unless losses and parameters are those of the step's earlier micro-batches."""
    if names != names_before:
        raise ValueError(
            "a step's micro-batches must have the same names in the same order, found"
            f" {_listed(names)} after {_listed(names_before)}: call combine() first, or discard()"
            " what was accumulated"
        )
    if len(losses) != count:
        raise ValueError(
            f"a step's micro-batches must have the same losses, found {len(losses)} after {count}:"
            " call combine() first, or discard() what was accumulated"
        )
    if len(leaves) != len(before) or any(a is not b for a, b in zip(leaves, before, strict=True)):
        raise ValueError(
            f"a step's micro-batches must have the same parameters, found {len(leaves)} that are not"
            f" the {len(before)} before: call combine() first, or discard() what was accumulated"
        )


def _listed(names: Names) -> str:
    return "a list" if names is None else ", ".join(map(repr, names))


def number(name: str, value: object, remedy: str) -> float:
    """A real number, a NumPy scalar too, as a float; TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, found {type(value).__name__}: {remedy}")
    return float(value)


def whole_number(name: str, value: object, smallest: int, remedy: str) -> int:
    """An integer, a NumPy scalar too, of at least ``smallest``, as an int; else ValueError."""
    try:
        found = smallest - 1 if isinstance(value, bool) else index(value)  # type: ignore[arg-type]
    except TypeError:
        found = smallest - 1
    if found < smallest:
        raise ValueError(
            f"{name} must be a whole number from {smallest}, found {value!r}: {remedy}"
        )
    return found


def check_samples(samples: float | None) -> None:
    """A finite number of at least 0, or None."""
    if samples is not None and not 0 <= number("samples", samples, "pass len(x)") < math.inf:
        raise ValueError(f"samples must be at least 0 and finite, found {samples}: pass len(x)")


def check_loss_scale(scale: float | Tensor) -> float | Tensor:
    """A factor above 0; tensors stay tensors, and those on a GPU are not read."""
    remedy = "pass scaler.get_scale()"
    if not isinstance(scale, Tensor):
        scale = number("loss_scale", scale, remedy)
    elif scale.numel() != 1:
        raise ValueError(
            f"loss_scale must be one number, found shape {tuple(scale.shape)}: {remedy}"
        )
    elif scale.device.type != "cpu":
        return scale
    if not 0 < float(scale) < math.inf:
        raise ValueError(f"loss_scale must be above 0 and finite, found {float(scale)}: {remedy}")
    return scale


def check_group(group: Any) -> Any:
    """A process group, or None for one process."""
    if group is None:
        return None
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group must be a process group, found {type(group).__name__}: call"
            " torch.distributed.init_process_group(), then pass torch.distributed.group.WORLD"
        )
    return group


Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]] | Tensor


def check_parameters(parameters: Parameters) -> list[Tensor]:
    """The parameters that require a gradient, each once, in order."""
    remedy = "pass model.parameters()"
    if isinstance(parameters, torch.nn.Module):
        raise TypeError(f"parameters must be tensors, found a module: {remedy}")
    if isinstance(parameters, torch.optim.Optimizer):
        raise TypeError(
            "parameters must be tensors or groups, found an optimizer: pass optimizer.param_groups"
        )
    if not isinstance(parameters, Iterable):
        raise TypeError(f"parameters must be tensors, found {type(parameters).__name__}: {remedy}")
    given = [parameters] if isinstance(parameters, Tensor) else _flattened(list(parameters))
    if not given:
        raise ValueError(
            "parameters must hold at least one tensor, found none: pass model.parameters() anew,"
            " as a generator is used up by one pass"
        )
    kept: dict[int, Tensor] = {}
    for p, parameter in enumerate(given):
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"parameters must be tensors, found {type(parameter).__name__} at position {p}:"
                f" {remedy}"
            )
        if not parameter.requires_grad:
            continue
        if not parameter.is_leaf:
            raise ValueError(
                f"parameter {p} of shape {tuple(parameter.shape)} is computed from others, so it"
                f" has no .grad: {remedy}"
            )
        kept[id(parameter)] = parameter
    if not kept:
        raise ValueError(
            f"parameters must hold one that requires a gradient, found {len(given)} frozen:"
            " unfreeze one by requires_grad_(True)"
        )
    return list(kept.values())


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; does not import torch's module of them, which is heavy."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def require_no_shards(leaves: Sequence[Tensor]) -> None:
    """ValueError for sharded parameters in a combiner without a group."""
    if any(map(is_sharded, leaves)):
        raise ValueError(
            "sharded parameters need a combiner with a group, found one without: give it"
            " group=torch.distributed.group.WORLD"
        )


def _flattened(given: list[Any]) -> list[Any]:
    """The tensors of parameter groups, if these are such."""
    if not any(isinstance(item, Mapping) for item in given):
        return given
    tensors: list[Any] = []
    for position, group in enumerate(given):
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(
                f"parameter groups must be dicts with 'params', found {type(group).__name__} at"
                f" position {position}: pass optimizer.param_groups"
            )
        inside = group["params"]
        tensors.extend([inside] if isinstance(inside, Tensor) else inside)
    return tensors


def loss_values(losses: Sequence[Tensor]) -> Tensor:
    """[S] the losses' values on the first one's device."""
    device = losses[0].device
    values = torch.stack([loss.detach().reshape(()).to(device) for loss in losses])
    return values.to(wide_dtype(device))


def finite_losses(values_S: Tensor, on_nonfinite: str, names: Names = None) -> list[int]:
    """Indices of the losses that count: the only place where a step synchronizes with a GPU.

    Under ``on_nonfinite="ignore"`` all losses count, and their values are not read.
    """
    if on_nonfinite == "ignore":
        return list(range(len(values_S)))
    if values_S.is_meta:
        raise ValueError(
            "losses must have values, found meta tensors: move network and data to a real device,"
            ' or pass on_nonfinite="ignore"'
        )
    finite = torch.isfinite(values_S).tolist()
    if on_nonfinite == "raise" and not all(finite):
        i = finite.index(False)
        raise NonFiniteLossError(
            f"loss {names[i] if names else i} is not finite ({values_S[i].item()}): lower the"
            " learning rate or clip the gradient, or leave such losses out by"
            ' on_nonfinite="skip"'
        )
    return [i for i, ok in enumerate(finite) if ok]


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """One of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, found {value!r}")
    return value


def check_gradients(task: int, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """One task's gradients; ValueError for sparse or complex ones, which cannot be combined."""
    for grad in grads:
        if grad is None:
            continue
        if grad.layout != torch.strided:
            raise ValueError(
                f"loss {task} gives a sparse gradient for a parameter of shape"
                f" {tuple(grad.shape)}: make it dense, e.g. nn.Embedding(..., sparse=False)"
            )
        if grad.is_complex():
            raise ValueError(
                f"loss {task} gives a complex gradient for a parameter of shape"
                f" {tuple(grad.shape)}: store it as a real tensor, see torch.view_as_real"
            )
    return grads


Priority = tuple[int, ...] | tuple[str, ...]


def priority_of(priority: Sequence[int] | Sequence[str]) -> Priority:
    """A priority as a tuple of integers or of names, each loss once."""
    if not isinstance(priority, str) and isinstance(priority, Iterable):
        names = tuple(name for name in priority if isinstance(name, str))
        if names and len(names) == len(priority):
            if len(set(names)) < len(names):
                raise ValueError(
                    f"priority must name each loss once, found {list(names)}: leave out the repeated"
                )
            return names
    try:
        found = tuple(map(index, priority))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            "priority must be a list of loss indices, such as [1, 0], or of names, found"
            f" {priority!r}: list each loss once, highest first"
        ) from None
    check_priority(found, len(found))
    return found


def check_priority(
    priority: Sequence[int] | Sequence[str] | None, count: int, names: Names = None
) -> None:
    """ValueError unless a priority lists each of ``count`` losses once."""
    if priority is None:
        return
    if priority and isinstance(priority[0], str):
        _require_names("priority", priority, names)
    elif sorted(priority) != list(range(count)):
        raise ValueError(
            f"priority must be a permutation of 0 to {count - 1} for {count} losses, found"
            f" {list(priority)}: list each loss once, highest first"
        )


def _require_names(argument: str, given: Iterable[Any], names: Names) -> None:
    """ValueError unless the names in an argument are those of the losses."""
    if names is None or set(given) != set(names):
        found = "a list" if names is None else _listed(names)
        raise ValueError(
            f"{argument} names {_listed(tuple(given))}, so losses must be a dict with these names,"
            f" found {found}: name each loss once in both"
        )


def check_weights(
    weights: Sequence[float] | Mapping[str, float] | None, count: int, names: Names = None
) -> None:
    """ValueError unless there are ``count`` weights, or one for each name, or None."""
    if isinstance(weights, Mapping):
        _require_names("weights", weights, names)
    elif weights is not None and len(weights) != count:
        raise ValueError(
            f"weights must hold one number per loss, found {len(weights)} for {count} losses: pass"
            f" {count}, or None for equal ones"
        )


def check_numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Finite numbers as floats."""
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be numbers, found {type(value).__name__} at position {i}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, found {value} at position {i}")
    return tuple(float(value) for value in values)
