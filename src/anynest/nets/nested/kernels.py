"""Parts of the dense kernels: block-triangular convolutions, norms over all nodes, and gradients.

All act on the leading channels of dense buffers, without autograd (``fused.py`` adds it).

A unit's nodes are divided into *groups* of neighbours. Each group is one dense kernel, with zeros
where an earlier node of the group does not read a later one. One group has the fewest launches, one
group per node the fewest multiplications; ``node_groups`` has the rule, docs/benchmarks.md the
measurements.

Legend: j node, u unit; ``z`` a convolution's result before the norm, ``a`` a unit's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .node import Norm, subsample
from .sync import SyncBatchNorm, joined_backward, joined_statistics

aten = torch.ops.aten

# On a CPU in float32, a layer of at least this many channels is two groups: for widths (1, 1, 2)
# that leaves 12/16 of the dense kernel's multiplications. In narrower layers, and in bf16, the
# copies cost more than that saves.
MIN_CHANNELS_TO_SPLIT = 64


@dataclass(frozen=True)
class Shape:
    """The sizes of one call: channels per unit and node, cumulative."""

    inputs: tuple[int, ...]  # channels of x that node j reads, all parts up to it
    outputs: tuple[tuple[int, ...], ...]  # [u][j]: channels of unit u up to and including node j
    kernels: tuple[tuple[int, int], ...]  # [u]: kernel size, stride
    groups: tuple[tuple[tuple[int, int], ...], ...]  # [u]: nodes first..end of each dense kernel
    parts: tuple[int, ...]  # channels of each part of x
    relu: bool
    residual: str | None

    @property
    def widths(self) -> list[int]:
        """Channels of each node's result."""
        ends = self.outputs[-1]
        return [end - start for start, end in zip((0, *ends), ends, strict=False)]

    def reads(self, unit: int, node: int) -> int:
        """Channels that a node's unit reads."""
        return self.inputs[node] if unit == 0 else self.outputs[unit - 1][node]

    def rows(self, unit: int, node: int) -> slice:
        """Channels that a node's unit writes."""
        return slice(self.outputs[unit][node - 1] if node else 0, self.outputs[unit][node])


def node_groups(
    ends: Sequence[int], device: str, dtype: torch.dtype
) -> tuple[tuple[int, int], ...]:
    """Which neighbouring nodes share one dense kernel, from their cumulative channels."""
    cut = device == "cpu" and dtype == torch.float32 and ends[-1] >= MIN_CHANNELS_TO_SPLIT
    groups: list[tuple[int, int]] = []
    first, start = 0, 0
    for j, end in enumerate(ends):
        last = j == len(ends) - 1
        if last or (cut and 2 * (end - start) >= ends[-1]):
            groups.append((first, j + 1))
            first, start = j + 1, end
    return tuple(groups)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along channels, without a copy if the parts are adjacent in one buffer."""
    first = parts[0]
    if len(parts) == 1:
        return first
    stride, pointer, size = first.stride(), first.data_ptr(), first.element_size()
    storage = first.untyped_storage().data_ptr()
    channels = 0
    for part in parts:
        if (
            part.stride() != stride
            or part.dtype != first.dtype
            or part.data_ptr() != pointer + channels * stride[1] * size
            or part.untyped_storage().data_ptr() != storage
        ):
            return torch.cat(list(parts), dim=1)
        channels += part.shape[1]
    return first.as_strided((first.shape[0], channels, *first.shape[2:]), stride)


def leading(x: Tensor, channels: int) -> Tensor:
    """The first channels of a buffer, dense in memory."""
    if x.shape[1] == channels:
        return x
    return x[:, :channels].contiguous(memory_format=layout_of(x))


def layout_of(x: Tensor) -> torch.memory_format:
    """The memory format of a dense buffer."""
    nhwc = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if nhwc else torch.contiguous_format


def pointwise(a: Tensor, size: int, stride: int) -> tuple[Tensor, int]:
    """The input and the stride of a convolution; see ``Pointwise`` for the reason."""
    return (subsample(a, stride), 1) if size == 1 and a.device.type == "cpu" else (a, stride)


def convolve(
    a: Tensor, weights: Sequence[Tensor], shape: Shape, unit: int
) -> tuple[Tensor, list[Tensor]]:
    """All nodes' convolutions of one unit.

    Returns:
        The result ``[B, c, H', W']`` and the groups' dense kernels.
    """
    size, stride = shape.kernels[unit]
    a, stride = pointwise(a, size, stride)
    results, kernels = [], []
    for first, end in shape.groups[unit]:
        start = shape.rows(unit, first).start
        inputs = shape.reads(unit, end - 1)
        if end - first == 1:
            kernel = weights[first].to(a.dtype)
        else:
            rows = shape.outputs[unit][end - 1] - start
            kernel = torch.zeros((rows, inputs, size, size), dtype=a.dtype, device=a.device)
            for j in range(first, end):
                own = shape.rows(unit, j)
                kernel[own.start - start : own.stop - start, : weights[j].shape[1]] = weights[j]
        kernels.append(kernel)
        results.append(torch.conv2d(a[:, :inputs], kernel, None, stride, size // 2))
    return (results[0] if len(results) == 1 else torch.cat(results, dim=1)), kernels


def convolve_backward(
    grad: Tensor,
    a: Tensor,
    kernels: Sequence[Tensor],
    shape: Shape,
    unit: int,
    active: int,
    needs_input: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The backward pass of ``convolve`` for the leading ``active`` nodes.

    Returns:
        The gradient of ``a``, if needed, and those of the nodes' weights.
    """
    size, stride = shape.kernels[unit]
    taken, step = pointwise(a, size, stride)
    total: Tensor | None = None
    weights: list[Tensor] = []
    for kernel, (first, end) in zip(reversed(kernels), reversed(shape.groups[unit]), strict=True):
        if first >= active:
            continue
        end = min(end, active)
        start, stop = shape.rows(unit, first).start, shape.rows(unit, end - 1).stop
        inputs = shape.reads(unit, end - 1)
        part, dense, _ = aten.convolution_backward(
            grad[:, start:stop],
            taken[:, :inputs],
            kernel[: stop - start, :inputs].contiguous(),
            None,
            [step, step],
            [size // 2, size // 2],
            [1, 1],
            False,
            [0, 0],
            1,
            [needs_input, True, False],
        )
        if needs_input:
            total = part if total is None else _add_leading(total, part)
        own = [shape.rows(unit, j) for j in range(first, end)]
        weights = [
            dense[rows.start - start : rows.stop - start, : shape.reads(unit, j)]
            for j, rows in enumerate(own, first)
        ] + weights
    if total is not None and step != stride:
        whole = torch.zeros_like(a[:, : total.shape[1]], memory_format=layout_of(a))
        subsample(whole, stride).copy_(total)
        total = whole
    return (grad if total is None else total), weights


def _add_leading(total: Tensor, part: Tensor) -> Tensor:
    total[:, : part.shape[1]].add_(part)
    return total


def normalise(
    z: Tensor, gamma: Tensor, beta: Tensor, norms: Sequence[Norm]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Batch norm over all nodes' channels; updates each norm's running statistics.

    Returns:
        The result and the arguments of its backward pass: in training the mean and the inverse
        standard deviation of the batch, in evaluation the running mean and variance, over ranks the
        mean, the variance and the number of values per channel.
    """
    first = norms[0]
    if first.training and isinstance(first, SyncBatchNorm):
        mean, variance, count = joined_statistics(z, first.group)
        sizes = [norm.num_features for norm in norms]
        pieces = zip(norms, torch.split(mean, sizes), torch.split(variance, sizes), strict=True)
        for norm, its_mean, its_variance in pieces:
            assert isinstance(norm, SyncBatchNorm)
            norm.remember(its_mean, its_variance, count)
        a = torch.batch_norm(z, gamma, beta, mean, variance, False, 0.0, first.eps, False)
        return a, mean, variance, count
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    mean, variance = torch.cat(means), torch.cat(variances)
    training = norms[0].training
    a, batch_mean, batch_invstd = torch.native_batch_norm(
        z, gamma, beta, mean, variance, training, norms[0].momentum or 0.0, norms[0].eps
    )
    if not training:
        return a, mean, variance, None
    sizes = [norm.num_features for norm in norms]
    updated = (*torch.split(mean, sizes), *torch.split(variance, sizes))
    # .data, as torch's kernel does not count a version either: other uses of a shared norm have
    # saved these for their backward passes, which in training do not read them
    torch._foreach_copy_([kept.data for kept in means + variances], updated)
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    torch._foreach_add_(counts, 1)
    return a, batch_mean, batch_invstd, None


def normalise_backward(
    grad: Tensor,
    z: Tensor,
    gamma: Tensor,
    mean: Tensor,
    spread: Tensor,
    training: bool,
    eps: float,
    count: Tensor | None,
    group: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of ``normalise`` for the leading channels, those of ``grad``."""
    channels = grad.shape[1]
    mean, spread = mean[:channels], spread[:channels]
    if count is not None:
        grad, z, gamma = grad.to(z.dtype), leading(z, channels), gamma[:channels]
        return joined_backward(grad, z, gamma, mean, spread, count, eps, group)
    running = (None, None) if training else (mean, spread)
    batch = (mean, spread) if training else (None, None)
    result: tuple[Tensor, Tensor, Tensor] = aten.native_batch_norm_backward(
        grad.to(z.dtype),
        leading(z, channels),
        gamma[:channels],
        *running,
        *batch,
        training,
        eps,
        [True, True, True],
    )
    return result


def scatter(out: list[Tensor | None], first: int, whole: Tensor, widths: Sequence[int]) -> None:
    """Split a gradient into the slices of its tensor, as far as it reaches."""
    start = 0
    for number, width in enumerate(widths):
        if start + width > whole.shape[1]:
            return
        out[first + number] = whole[:, start : start + width]
        start += width
