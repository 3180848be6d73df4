"""All nodes of a layer at once: dense kernels with zero blocks and a stage-aware backward pass.

The nodes of a layer that read the same layers are one block-triangular convolution: a dense kernel
whose weights from later channels to earlier ones are zero. Autograd alone would lose that
structure: the gradient of stage 1's loss would pass through all channels. Here every node's result
is an output of its own, and autograd passes None for those that a loss did not reach. The backward
pass covers the leading nodes up to the last one reached, so that gradients outside w_i are absent,
not zero, and cost nothing (docs/layout.md).

Legend: j node, u unit; ``y`` results, ``z`` convolutions before the norm, ``a`` activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .kernels import (
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
from .node import NestedNode, Norm, Pointwise
from .plain import is_plain, is_transformed
from .plan import Node, Unit
from .sync import SyncBatchNorm


class FusedRun:
    """Nodes of a layer that read the same layers, evaluated by one kernel per group of them.

    Args:
        nodes: the plan's entries, in order of birth.
        relu: whether their results are rectified.
    """

    def __init__(self, nodes: Sequence[Node], relu: bool) -> None:
        self.nodes = tuple(nodes)
        self.relu = relu
        self.units = range(1, len(nodes[0].units) + 1)
        self.stride = prod(unit.stride for unit in nodes[0].units)
        self.shapes: dict[tuple[object, ...], Shape] = {}

    def find_norms(
        self, modules: Sequence[nn.Module], parts: Sequence[Tensor]
    ) -> list[list[list[Norm]]] | None:
        """Per unit and node the batch norms (one, or the pieces of a shared one).

        None where the dense kernels cannot replace the modules: for modules that are not plain
        (``plain.py``), for unlike norms, and for inputs that modules would refuse.
        """
        x = parts[0]
        if len(modules) < 2:
            return None
        nodes = [module for module in modules if is_plain(module, NestedNode)]
        if len(nodes) < len(modules):
            return None
        rows: list[list[list[Norm]]] = [[] for _ in self.units]
        for node, plan in zip(nodes, self.nodes, strict=True):
            assert isinstance(node, NestedNode)
            for number, unit in enumerate(plan.units, 1):
                if not _is_plain_convolution(node._modules[f"conv{number}"], unit, x):
                    return None
                own = node.batch_norms(number)
                if own is None:
                    return None
                rows[number - 1].append(own)
        norms = [norm for row in rows for own in row for norm in own]
        like = _settings(norms[0])
        if like is None or any(_settings(norm) != like for norm in norms):
            return None
        values = x.shape[0] * prod(-(-size // self.stride) for size in x.shape[2:])
        joint = norms[0].training and isinstance(norms[0], SyncBatchNorm)
        # a norm over one value must fail, and an empty batch change nothing: modules do so
        return rows if values > 1 or joint else None

    def __call__(
        self,
        modules: Sequence[nn.Module],
        norms: list[list[list[Norm]]],
        parts: Sequence[Tensor],
        reads: Sequence[int],
        added: Sequence[Tensor],
    ) -> list[Tensor]:
        """The results of ``NestedNode.forward`` for each of the nodes.

        Args:
            modules: the nodes' modules.
            norms: the result of ``find_norms``.
            parts: the input in slices, ``[B, C_i, H, W]`` each.
            reads: how many of the parts each node reads; rising.
            added: the slices of the layer that is added, one per node, if any.

        Returns:
            The nodes' results, ``[B, c_j, H', W']`` each, views of one buffer.
        """
        device, dtype = parts[0].device.type, _compute_dtype(parts[0])
        shape = self._shape(tuple(part.shape[1] for part in parts), tuple(reads), device, dtype)
        weights = [getattr(node, f"conv{u}").weight for u in self.units for node in modules]
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
            units = list(zip(*(node.units for node in self.nodes), strict=True))
            outputs = [tuple(accumulate(unit.outputs for unit in row)) for row in units]
            residual = self.nodes[0].residual
            self.shapes[key] = Shape(
                inputs=tuple(sum(channels[:count]) for count in reads),
                outputs=tuple(outputs),
                kernels=tuple((row[0].kernel, row[0].stride) for row in units),
                groups=tuple(node_groups(ends, device, dtype) for ends in outputs),
                parts=channels,
                relu=self.relu,
                residual=residual if residual in (None, "input") else "layer",
            )
        return self.shapes[key]


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The precision of a convolution of ``x``: autocast leaves float64 as it is."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _is_plain_convolution(module: Any, unit: Unit, x: Tensor) -> bool:
    """Whether ``module`` is the convolution that the plan describes, and fits the input."""
    if not is_plain(module, nn.Conv2d, Pointwise):
        return False
    kernel, stride, half = unit.kernel, unit.stride, unit.kernel // 2
    tensors = module._parameters  # without nn.Module's slower attribute lookup
    weight = tensors.get("weight")
    return (
        weight is not None
        and tensors.get("bias") is None
        and (module.stride, module.padding) == ((stride, stride), (half, half))
        and (module.dilation, module.groups, module.padding_mode) == ((1, 1), 1, "zeros")
        and weight.shape == (unit.outputs, unit.inputs, kernel, kernel)
        and weight.device == x.device
        and (weight.dtype == x.dtype or _compute_dtype(x) != x.dtype)
    )


def _settings(norm: Norm) -> tuple[object, ...] | None:
    """Settings in which the norms of one kernel agree; None if no kernel evaluates such a norm."""
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    # momentum None: the average of all batches
    plain = norm.track_running_stats and norm.momentum is not None
    if not plain or weight is None or bias is None:
        return None
    return type(norm), norm.momentum, norm.eps, norm.training, weight.dtype


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
        # create_graph=True, or is_grads_batched=True
        if torch.is_grad_enabled() or any(map(is_transformed, grads)):
            raise RuntimeError(
                "the gradients of dense kernels can be neither differentiated nor vectorised: set"
                " model.kernels = 'stripes' first"
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
        through = grad  # the residual's gradient
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
    """The gradient of the leading nodes' results as one tensor; zero where no loss reads a node."""
    some = next(grad for grad in grads if grad is not None)
    full = []
    for j, grad in enumerate(grads):
        if grad is None:
            grad = some.new_zeros((some.shape[0], shape.widths[j], *some.shape[2:]))
        full.append(grad)
    return joined(full)
