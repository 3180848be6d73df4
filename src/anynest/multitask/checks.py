"""What a user may get wrong, each said in one line, before anything has been touched."""

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .gradients.task_gradients import wide_dtype


class NonFiniteLossError(ValueError):
    """A loss is NaN or infinite, and ``on_nonfinite`` is "raise"."""


def check_losses(losses: Sequence[Tensor]) -> list[Tensor]:
    """The losses as a list; ValueError or TypeError names the loss and the remedy."""
    if isinstance(losses, Tensor) and losses.dim() == 0:
        raise TypeError("losses must be a list with one scalar per task, found one tensor: [loss]")
    if isinstance(losses, Mapping):
        raise TypeError(
            f"losses must be a list with one scalar per task, found a {type(losses).__name__}: pass"
            " list(losses.values())"
        )
    if not isinstance(losses, Iterable):
        raise TypeError(
            f"losses must be a list with one scalar per task, found {type(losses).__name__}: [loss]"
        )
    found = list(losses)
    if not found:
        raise ValueError("losses must hold at least one loss, found an empty list: pass one a task")
    for i, loss in enumerate(found):
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
        if not loss.requires_grad:
            raise ValueError(
                f"loss {i} needs no gradient: compute it from parameters that require one, outside"
                " torch.no_grad() and without .detach()"
            )
    return found


def check_micro_batch(
    losses: Sequence[Tensor], leaves: Sequence[Tensor], count: int, before: Sequence[Tensor]
) -> None:
    """Losses and parameters as in the step's earlier micro-batches."""
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


def check_samples(samples: float | None) -> None:
    if samples is None:
        return
    if isinstance(samples, bool) or not isinstance(samples, int | float):
        raise TypeError(f"samples must be a number, found {type(samples).__name__}: len(x)")
    if not 0 <= samples < math.inf:
        raise ValueError(f"samples must be at least 0 and finite, found {samples}: pass len(x)")


def check_loss_scale(scale: float | Tensor) -> None:
    """A factor above 0. One on a device other than the CPU is not looked at, as that would wait."""
    if isinstance(scale, bool) or not isinstance(scale, int | float | Tensor):
        raise TypeError(
            f"loss_scale must be a number, found {type(scale).__name__}: pass scaler.get_scale()"
        )
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            raise ValueError(
                f"loss_scale must be one number, found shape {tuple(scale.shape)}: pass"
                " scaler.get_scale()"
            )
        if scale.device.type != "cpu":
            return
    if not 0 < float(scale) < math.inf:
        raise ValueError(
            f"loss_scale must be above 0 and finite, found {float(scale)}: pass scaler.get_scale()"
        )


def check_group(group: Any) -> Any:
    """A process group that this process belongs to, or None for one process."""
    if group is None:
        return None
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group must be a process group, found {type(group).__name__}: call"
            " torch.distributed.init_process_group(), then pass torch.distributed.group.WORLD"
        )
    return group


Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]] | Tensor


def split_groups(parameters: Parameters) -> tuple[list[Tensor], dict[int, int] | None]:
    """Tensors alone, and where groups (dicts with "params") were given, each one's group number.

    A tensor counts for the first group that has it, and what is no tensor is left for
    ``check_parameters`` to name.
    """
    if isinstance(parameters, Tensor):
        return [parameters], None
    if isinstance(parameters, torch.nn.Module):
        raise TypeError("parameters must be tensors, found a module: pass model.parameters()")
    if isinstance(parameters, torch.optim.Optimizer):
        raise TypeError(
            "parameters must be tensors or groups, found an optimizer: pass optimizer.param_groups"
        )
    if not isinstance(parameters, Iterable):
        raise TypeError(
            f"parameters must be tensors, found {type(parameters).__name__}: pass model.parameters()"
        )
    given: list[Any] = list(parameters)
    if not any(isinstance(item, Mapping) for item in given):
        return given, None
    tensors: list[Tensor] = []
    groups: dict[int, int] = {}
    for number, group in enumerate(given):
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(
                f"parameter groups must be dicts with 'params', found {type(group).__name__} at"
                f" position {number}: pass optimizer.param_groups"
            )
        inside = group["params"]
        for tensor in [inside] if isinstance(inside, Tensor) else inside:
            tensors.append(tensor)
            groups.setdefault(id(tensor), number)
    return tensors, groups


def check_parameters(parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    """The parameters that require a gradient, each once, in order."""
    remedy = "pass model.parameters()"
    if isinstance(parameters, torch.nn.Module):
        raise TypeError(f"parameters must be tensors, found a module: {remedy}")
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
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
                f"parameter {p} of shape {tuple(parameter.shape)} is computed from others, so it has"
                f" no .grad: {remedy}"
            )
        kept[id(parameter)] = parameter
    if not kept:
        raise ValueError(
            f"parameters must hold one that requires a gradient, found {len(given)} frozen: unfreeze"
            " one by requires_grad_(True)"
        )
    return list(kept.values())


def loss_values(losses: Sequence[Tensor]) -> Tensor:
    """[S] the losses' values on the first one's device."""
    device = losses[0].device
    dtype = wide_dtype(device)
    return torch.stack([loss.detach().reshape(()).to(device, dtype) for loss in losses])


def finite_losses(values_S: Tensor, on_nonfinite: str) -> list[int]:
    """Indices of the finite losses. The one place where a step waits for a GPU.

    ``on_nonfinite="ignore"`` takes them all, unseen.
    """
    if on_nonfinite == "ignore":
        return list(range(len(values_S)))
    finite = torch.isfinite(values_S).tolist()
    if on_nonfinite == "raise" and not all(finite):
        i = finite.index(False)
        raise NonFiniteLossError(
            f"loss {i} is not finite ({values_S[i].item()}): lower the learning rate or clip the"
            ' gradient, or leave such losses out by on_nonfinite="skip"'
        )
    return [i for i, ok in enumerate(finite) if ok]


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, found {value!r}")
    return value


def check_gradients(task: int, grads: Sequence[Tensor | None]) -> None:
    """Dense real gradients only: a projection mixes all entries of all tasks."""
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


def priority_of(priority: Sequence[int]) -> tuple[int, ...]:
    """A priority as whole numbers, each loss once; TypeError or ValueError says what it must be."""
    try:
        found = tuple(map(index, priority))
    except TypeError:
        raise TypeError(
            f"priority must be a list of loss indices, such as [1, 0], found {priority!r}: list each"
            " loss once, highest first"
        ) from None
    check_priority(found, len(found))
    return found


def check_priority(priority: Sequence[int] | None, count: int) -> None:
    """A priority names each of ``count`` losses once."""
    if priority is not None and sorted(priority) != list(range(count)):
        raise ValueError(
            f"priority must be a permutation of 0 to {count - 1} for {count} losses, found"
            f" {list(priority)}: list each loss once, highest first"
        )


def check_weights(weights: Sequence[float] | None, count: int) -> None:
    if weights is not None and len(weights) != count:
        raise ValueError(
            f"weights must hold one number per loss, found {len(weights)} for {count} losses: pass"
            f" {count}, or None for equal ones"
        )


def check_numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be numbers, found {type(value).__name__} at position {i}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, found {value} at position {i}")
    return tuple(float(value) for value in values)
