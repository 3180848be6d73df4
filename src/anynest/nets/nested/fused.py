"""All nodes of a layer at once: dense kernels with zero blocks, and a backward pass that knows stages.

The nodes of a layer that read the same layers are a block-triangular convolution: one dense kernel in
which the weights from later channels to earlier ones are zero. Autograd alone would lose the structure:
behind a dense kernel, the loss of stage 1 walks through all channels. Here every slice keeps an output of
its own, and autograd says which of them a loss reached (the others' gradients are None). The backward
pass takes the leading slices up to the last one reached and touches no channel beyond, so that the
gradients outside w_i are absent, not zero, and cost nothing (docs/layout.md).

Legend: j node, u unit; ``y`` results, ``z`` convolutions' results before the norm, ``a`` activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from .kernels import (
    Norm,
    Shape,
    aten,
    convolve,
    convolve_backward,
    joined,
    leading,
    node_groups,
    normalise,
    normalise_backward,
    scatter,
)
from .node import NestedNode
from .sync import SyncBatchNorm


class FusedRun:
    """Nodes of a layer that read the same layers, evaluated by one kernel a group of them.

    Args:
        stripes: the nodes, in order of birth.
        residual: ``"input"``, ``"layer"`` (another layer's result is added), or None.
    """

    def __init__(self, stripes: Sequence[NestedNode], residual: str | None) -> None:
        self.stripes = tuple(stripes)
        self.residual = residual
        self.units = range(1, stripes[0].depth + 1)
        self.shapes: dict[tuple[object, ...], Shape] = {}

    def batch_norms(self) -> list[list[list[Norm]]] | None:
        """Per unit and node the norms as they stand, or None where the dense kernels cannot stand in.

        One a node, or the pieces of one that is shared.

        They can with autograd on and plain batch norms in one mode; a user may have put others in place.
        """
        if len(self.stripes) < 2 or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        first = self.stripes[0].norms(1)[0]
        rows: list[list[list[Norm]]] = []
        for u in self.units:
            row: list[list[Norm]] = []
            for stripe in self.stripes:
                row.append([])
                for norm in stripe.norms(u):
                    if not (
                        (type(norm) is nn.BatchNorm2d or type(norm) is SyncBatchNorm)
                        and type(norm) is type(first)
                        and norm.track_running_stats
                        and norm.affine
                        and norm.momentum is not None  # a running mean over all batches
                        and norm.momentum == first.momentum
                        and norm.eps == first.eps
                        and norm.training == first.training
                    ):
                        return None
                    row[-1].append(norm)
            rows.append(row)
        return rows

    def __call__(
        self,
        norms: list[list[list[Norm]]],
        parts: Sequence[Tensor],
        reads: Sequence[int],
        added: Sequence[Tensor],
    ) -> list[Tensor]:
        """What ``NestedNode.forward`` gives for each of the nodes.

        Args:
            norms: what ``batch_norms`` found.
            parts: the input in slices, ``[B, C_i, H, W]`` each.
            reads: how many of the parts each node reads; rising.
            added: the slices of the layer that is added, one a node, if any.

        Returns:
            The nodes' results, ``[B, c_j, H', W']`` each, views of one buffer.
        """
        device = parts[0].device.type
        dtype = parts[0].dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        shape = self._shape(tuple(part.shape[1] for part in parts), tuple(reads), device, dtype)
        weights = [stripe.conv(u).weight for u in self.units for stripe in self.stripes]
        gammas = [_whole([norm.weight for norm in own]) for row in norms for own in row]
        betas = [_whole([norm.bias for norm in own]) for row in norms for own in row]
        flat = [[norm for own in row for norm in own] for row in norms]
        apply: Callable[..., tuple[Tensor, ...]] = _Fused.apply
        return list(apply(shape, flat, dtype, *parts, *added, *weights, *gammas, *betas))

    def _shape(
        self, channels: tuple[int, ...], reads: tuple[int, ...], device: str, dtype: torch.dtype
    ) -> Shape:
        key = (channels, reads, device, dtype)
        if key not in self.shapes:
            convs = [[stripe.conv(u) for stripe in self.stripes] for u in self.units]
            outputs = [tuple(accumulate(conv.out_channels for conv in row)) for row in convs]
            self.shapes[key] = Shape(
                inputs=tuple(sum(channels[:count]) for count in reads),
                outputs=tuple(outputs),
                kernels=tuple((row[0].kernel_size[0], row[0].stride[0]) for row in convs),
                groups=tuple(node_groups(ends, device, dtype) for ends in outputs),
                parts=channels,
                relu=self.stripes[0].relu,
                residual=self.residual,
            )
        return self.shapes[key]


def _whole(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class _Fused(torch.autograd.Function):
    """conv, norm, relu, ..., conv, norm (+ residual) (relu), for all nodes of a run at once."""

    @staticmethod
    def forward(
        ctx: Any,
        shape: Shape,
        norms: list[list[Norm]],
        dtype: torch.dtype,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        nodes, units, count = len(shape.inputs), len(shape.kernels), len(shape.parts)
        parts, rest = tensors[:count], tensors[count:]
        added, rest = (rest[:nodes], rest[nodes:]) if shape.residual == "layer" else ((), rest)
        many = nodes * units
        weights, gammas, betas = rest[:many], rest[many : 2 * many], rest[2 * many :]
        with torch.autocast(parts[0].device.type, enabled=False):
            x = a = joined(parts).to(dtype)
            saved: list[Tensor] = [x]
            counts: list[Tensor | None] = []
            for u in range(units):
                mine = slice(u * nodes, (u + 1) * nodes)
                z, kernels = convolve(a, weights[mine], shape, u)
                gamma, beta = torch.cat(gammas[mine]), torch.cat(betas[mine])
                a, mean, spread, values = normalise(z, gamma, beta, norms[u])
                counts.append(values)
                saved += [*kernels, z, gamma, mean, spread]
                if u < units - 1:
                    a.relu_()
                    saved.append(a)
            if shape.residual is not None:
                a.add_(x if shape.residual == "input" else joined(added))
            if shape.relu:
                a.relu_()
                saved.append(a)
        ctx.save_for_backward(*saved)
        ctx.shape = shape
        ctx.training, ctx.eps = norms[0][0].training, norms[0][0].eps
        ctx.counts, ctx.group = counts, getattr(norms[0][0], "group", None)
        ctx.dtypes = parts[0].dtype, added[0].dtype if added else dtype, weights[0].dtype
        ctx.set_materialize_grads(False)
        return torch.split(a, shape.widths, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "the dense kernels' gradients have no gradients of their own: for those set"
                " model.kernels = 'stripes'"
            )
        shape: Shape = ctx.shape
        nodes, units = len(shape.inputs), len(shape.kernels)
        slots = FIRST + len(shape.parts) + (nodes if shape.residual == "layer" else 0)
        out: list[Tensor | None] = [None] * (slots + 3 * nodes * units)
        reached = [j for j, grad in enumerate(grads) if grad is not None]
        if not reached:
            return tuple(out)
        active = reached[-1] + 1  # nodes 0..active-1 take part; all beyond is left alone
        saved = list(ctx.saved_tensors)
        grad = _incoming(grads[:active], shape)
        if shape.relu:
            grad = aten.threshold_backward(grad, leading(saved.pop(), grad.shape[1]), 0)
        through = grad  # what the residual hands on
        needs_x = any(ctx.needs_input_grad[FIRST : FIRST + len(shape.parts)])
        for u in reversed(range(units)):
            if u < units - 1:
                aten.threshold_backward.grad_input(grad, saved.pop(), 0, grad_input=grad)
            z, gamma, mean, spread = saved[-4:]
            kernels = saved[-4 - len(shape.groups[u]) : -4]
            del saved[-4 - len(shape.groups[u]) :]
            saved[-1] = leading(saved[-1], shape.reads(u, active - 1))  # the unit's input
            grad, gamma_grad, beta_grad = normalise_backward(
                grad, z, gamma, mean, spread, ctx.training, ctx.eps, ctx.counts[u], ctx.group
            )
            needs = needs_x or u > 0
            grad, rows = convolve_backward(grad, saved[-1], kernels, shape, u, active, needs)
            for j in range(active):
                own = shape.rows(u, j)
                place = slots + u * nodes + j
                out[place] = rows[j].to(ctx.dtypes[2])
                out[place + nodes * units] = gamma_grad[own]
                out[place + 2 * nodes * units] = beta_grad[own]
        if needs_x:
            if shape.residual == "input":
                grad[:, : through.shape[1]].add_(through)
            scatter(out, FIRST, grad.to(ctx.dtypes[0]), shape.parts)
        if shape.residual == "layer":
            scatter(out, FIRST + len(shape.parts), through.to(ctx.dtypes[1]), shape.widths)
        return tuple(out)


FIRST = 3  # arguments of ``_Fused.forward`` before the tensors


def _incoming(grads: Sequence[Tensor | None], shape: Shape) -> Tensor:
    """The gradient of the leading nodes' results as one tensor; a node that no loss read counts zero."""
    some = next(grad for grad in grads if grad is not None)
    full = []
    for j, grad in enumerate(grads):
        if grad is None:
            grad = some.new_zeros((some.shape[0], shape.widths[j], *some.shape[2:]))
        full.append(grad)
    return joined(full)
