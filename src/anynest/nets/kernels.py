"""The pieces of the fused kernel: block-triangular weights, norms over all nodes, one unit's backward.

All act on leading channels of dense buffers and know nothing of autograd (``fused.py`` does).

Legend: j node, u unit; ``z`` a convolution's result before the norm, ``a`` a unit's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

aten = torch.ops.aten


@dataclass(frozen=True)
class Shape:
    """The sizes of one call: channels per unit and node, cumulative."""

    inputs: tuple[int, ...]  # channels of x that node j reads, all parts up to it
    outputs: tuple[tuple[int, ...], ...]  # [u][j]: channels of unit u up to and including node j
    kernels: tuple[tuple[int, int], ...]  # [u]: kernel size, stride
    parts: tuple[int, ...]  # channels of each part of x
    relu: bool
    residual: str | None
    training: bool
    momentum: float
    eps: tuple[float, ...]

    def reads(self, unit: int, node: int) -> int:
        """Channels that a node's unit reads."""
        return self.inputs[node] if unit == 0 else self.outputs[unit - 1][node]

    def rows(self, unit: int, node: int) -> slice:
        """Channels that a node's unit writes."""
        return slice(self.outputs[unit][node - 1] if node else 0, self.outputs[unit][node])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along channels, without a copy where the parts adjoin in one buffer."""
    first = parts[0]
    offset = first.storage_offset()
    for part in parts:
        same = part.stride() == first.stride() and part.dtype == first.dtype
        if not same or part.data_ptr() != first.data_ptr() + (
            (offset - first.storage_offset()) * first.element_size()
        ):
            return torch.cat(list(parts), dim=1)
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(list(parts), dim=1)
        offset += part.shape[1] * part.stride(1)
    size = (first.shape[0], sum(part.shape[1] for part in parts), *first.shape[2:])
    return first.as_strided(size, first.stride())


def leading(x: Tensor, channels: int) -> Tensor:
    """The first channels of a buffer, dense in memory."""
    if x.shape[1] == channels:
        return x
    lead = x[:, :channels]
    dense = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else None
    return lead.contiguous(memory_format=dense or torch.contiguous_format)


def dense_weight(
    weights: Sequence[Tensor], shape: Shape, unit: int, dtype: torch.dtype, like: Tensor
) -> Tensor:
    """The block-triangular weight of a unit: zero from later channels to earlier ones."""
    last = len(weights) - 1
    kernel = shape.kernels[unit][0]
    size = (shape.outputs[unit][last], shape.reads(unit, last), kernel, kernel)
    dense = torch.zeros(size, dtype=dtype, device=like.device)
    for j, weight in enumerate(weights):
        dense[shape.rows(unit, j), : weight.shape[1]] = weight
    return dense


def normalise(
    z: Tensor, gamma: Tensor, beta: Tensor, norms: list[nn.BatchNorm2d], shape: Shape, unit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm over all nodes' channels; running statistics go back to each node's own buffers."""
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    mean, variance = torch.cat(means), torch.cat(variances)
    a, saved_mean, saved_invstd = torch.native_batch_norm(
        z, gamma, beta, mean, variance, shape.training, shape.momentum, shape.eps[unit]
    )
    if shape.training:
        sizes = [norm.num_features for norm in norms]
        torch._foreach_copy_(means, list(torch.split(mean, sizes)))
        torch._foreach_copy_(variances, list(torch.split(variance, sizes)))
        for norm in norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
        return a, saved_mean, saved_invstd
    return a, mean, variance


def unit_backward(
    shape: Shape,
    unit: int,
    active: int,
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    needs_input: bool,
) -> tuple[Tensor, tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Back through one norm and one convolution, for the leading channels of ``active`` nodes."""
    weight, z, gamma, mean, invstd, a = saved
    outputs, inputs = shape.outputs[unit][active - 1], shape.reads(unit, active - 1)
    running = (None, None) if shape.training else (mean[:outputs], invstd[:outputs])
    batch = (mean[:outputs], invstd[:outputs]) if shape.training else (None, None)
    grad, gamma_grad, beta_grad = aten.native_batch_norm_backward(
        grad.to(z.dtype),
        leading(z, outputs),
        gamma[:outputs],
        *running,
        *batch,
        shape.training,
        shape.eps[unit],
        [True, True, True],
    )
    kernel, stride = shape.kernels[unit]
    pad = [kernel // 2] * 2
    grad, dense, _ = aten.convolution_backward(
        grad,
        a,
        weight[:outputs, :inputs].contiguous(),
        None,
        [stride, stride],
        pad,
        [1, 1],
        False,
        [0, 0],
        1,
        [needs_input, True, False],
    )
    weights, gammas, betas = [], [], []
    for j in range(active):
        rows = shape.rows(unit, j)
        weights.append(dense[rows, : shape.reads(unit, j)])
        gammas.append(gamma_grad[rows])
        betas.append(beta_grad[rows])
    return grad, (weights, gammas, betas)


def scatter(out: list[Tensor | None], first: int, whole: Tensor, widths: Sequence[int]) -> None:
    """Hand a gradient back in the slices in which its tensor came, as far as it reaches."""
    start = 0
    for number, width in enumerate(widths):
        if start + width > whole.shape[1]:
            return
        out[first + number] = whole[:, start : start + width]
        start += width
