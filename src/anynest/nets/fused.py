"""All nodes of a layer at once: dense kernels with zero blocks, and a backward pass that knows stages.

The nodes of a layer that read the same layers are a block-triangular convolution: one dense kernel in
which the weights from later channels to earlier ones are zero. Autograd alone would lose the structure:
behind a dense kernel, the loss of stage 1 walks through all channels. Here every slice keeps an output of
its own, and autograd says which of them a loss reached (the others' gradients are None). The backward
pass takes the leading slices up to the last one reached and touches no channel beyond, so that the
gradients outside w_i are absent, not zero, and cost nothing (docs/architecture.md).

Legend: j node, u unit; ``y`` results, ``z`` convolutions' results before the norm, ``a`` activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .kernels import (
    Shape,
    aten,
    dense_weight,
    joined,
    leading,
    normalise,
    scatter,
    unit_backward,
)
from .stripe import Stripe


def can_fuse(stripes: Sequence[Stripe]) -> bool:
    """Whether the dense kernel may stand in: plain batch norms, all training or none, and autograd on."""
    if len(stripes) < 2 or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    norms = [stripe.norm(u) for stripe in stripes for u in range(1, stripe.depth + 1)]
    plain = all(type(n) is nn.BatchNorm2d and n.momentum == norms[0].momentum for n in norms)
    return plain and len({norm.training for norm in norms}) == 1


def fused_forward(
    stripes: Sequence[Stripe],
    parts: Sequence[Tensor],
    reads: Sequence[int],
    residual: str | None,
    added: Sequence[Tensor],
) -> list[Tensor]:
    """What ``Stripe.forward`` gives for each of the nodes, in one kernel a unit.

    Args:
        stripes: the nodes, in order of birth.
        parts: the input in slices, ``[B, C_i, H, W]`` each.
        reads: how many of the parts each node reads; rising.
        residual: ``"input"``, ``"layer"`` (then ``added`` holds its slices, one a node), or None.

    Returns:
        The nodes' results, ``[B, c_j, H', W']`` each, views of one buffer.
    """
    units = range(1, stripes[0].depth + 1)
    channels = [part.shape[1] for part in parts]
    norms = [[_batch_norm(stripe.norm(u)) for stripe in stripes] for u in units]
    shape = Shape(
        inputs=tuple(sum(channels[:count]) for count in reads),
        outputs=tuple(_cumulative([s.conv(u).out_channels for s in stripes]) for u in units),
        kernels=tuple(
            (stripes[0].conv(u).kernel_size[0], stripes[0].conv(u).stride[0]) for u in units
        ),
        parts=tuple(channels),
        relu=stripes[0].relu,
        residual=residual,
        training=norms[0][0].training,
        momentum=norms[0][0].momentum or 0.0,
        eps=tuple(row[0].eps for row in norms),
    )
    weights = [stripe.conv(u).weight for u in units for stripe in stripes]
    gammas = [norm.weight for row in norms for norm in row]
    betas = [norm.bias for row in norms for norm in row]
    apply: Callable[..., tuple[Tensor, ...]] = _Fused.apply
    return list(apply(shape, norms, *parts, *added, *weights, *gammas, *betas))


def _batch_norm(norm: nn.Module) -> nn.BatchNorm2d:
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def _cumulative(values: Sequence[int]) -> tuple[int, ...]:
    total, result = 0, []
    for value in values:
        total += value
        result.append(total)
    return tuple(result)


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


class _Fused(torch.autograd.Function):
    """conv, norm, relu, ..., conv, norm (+ residual) (relu), for all nodes of a run at once."""

    @staticmethod
    def forward(
        ctx: Any, shape: Shape, norms: list[list[nn.BatchNorm2d]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        nodes, units = len(shape.inputs), len(shape.kernels)
        count = len(shape.parts)
        parts, rest = tensors[:count], tensors[count:]
        added, rest = (rest[:nodes], rest[nodes:]) if shape.residual == "layer" else ((), rest)
        weights, gammas, betas = (
            rest[i * nodes * units : (i + 1) * nodes * units] for i in range(3)
        )
        dtype = _compute_dtype(parts[0])
        with torch.autocast(parts[0].device.type, enabled=False):
            x = a = joined(parts).to(dtype)
            saved: list[Tensor] = [x]
            for u in range(units):
                mine = slice(u * nodes, (u + 1) * nodes)
                weight = dense_weight(weights[mine], shape, u, dtype, a)
                kernel, stride = shape.kernels[u]
                z = torch.conv2d(a, weight, None, stride, kernel // 2)
                gamma, beta = torch.cat(gammas[mine]), torch.cat(betas[mine])
                a, mean, invstd = normalise(z, gamma, beta, norms[u], shape, u)
                saved += [weight, z, gamma, mean, invstd]
                if u < units - 1:
                    a.relu_()
                    saved.append(a)
            if shape.residual == "input":
                a = a.add_(x)
            elif shape.residual == "layer":
                a = a.add_(joined(added))
            if shape.relu:
                a.relu_()
                saved.append(a)
        ctx.save_for_backward(*saved)
        ctx.shape = shape
        ctx.dtypes = parts[0].dtype, added[0].dtype if added else None, gammas[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(a[:, shape.rows(units - 1, j)] for j in range(nodes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        shape: Shape = ctx.shape
        nodes, units = len(shape.inputs), len(shape.kernels)
        slots = 2 + len(shape.parts) + (nodes if shape.residual == "layer" else 0)
        out: list[Tensor | None] = [None] * (slots + 3 * nodes * units)
        reached = [j for j, grad in enumerate(grads) if grad is not None]
        if not reached:
            return tuple(out)
        active = reached[-1] + 1  # nodes 0..active-1 take part; all beyond is left alone
        saved = list(ctx.saved_tensors)
        grad = _incoming(grads[:active], shape)
        if shape.relu:
            y = saved.pop()
            grad = aten.threshold_backward(grad, leading(y, grad.shape[1]), 0)
        through = grad  # what the residual hands on
        needs_x = any(ctx.needs_input_grad[2 : 2 + len(shape.parts)])
        for u in reversed(range(units)):
            if u < units - 1:
                aten.threshold_backward.grad_input(grad, saved.pop(), 0, grad_input=grad)
            weight, z, gamma, mean, invstd = saved[-5:]
            del saved[-5:]
            saved[-1] = leading(saved[-1], shape.reads(u, active - 1))  # the unit's input
            grad, row_grads = unit_backward(
                shape,
                u,
                active,
                grad,
                (weight, z, gamma, mean, invstd, saved[-1]),
                needs_x or u > 0,
            )
            for which, values in enumerate(row_grads):
                for j, value in enumerate(values):
                    out[slots + (which * units + u) * nodes + j] = value.to(ctx.dtypes[2])
        if needs_x:
            if shape.residual == "input":
                grad[:, : through.shape[1]].add_(through)
            scatter(out, 2, grad.to(ctx.dtypes[0]), shape.parts)
        if shape.residual == "layer":
            widths = [
                shape.rows(units - 1, j).stop - shape.rows(units - 1, j).start
                for j in range(active)
            ]
            scatter(out, 2 + len(shape.parts), through.to(ctx.dtypes[1]), widths)
        return tuple(out)


def _incoming(grads: Sequence[Tensor | None], shape: Shape) -> Tensor:
    """The gradient of the leading nodes' results as one tensor; a node that no loss read counts zero."""
    some = next(grad for grad in grads if grad is not None)
    full = []
    for j, grad in enumerate(grads):
        if grad is None:
            rows = shape.rows(len(shape.kernels) - 1, j)
            grad = some.new_zeros((some.shape[0], rows.stop - rows.start, *some.shape[2:]))
        full.append(grad)
    return joined(full)
