"""Batch norm over the samples of all ranks, on any device that torch.distributed serves.

``torch.nn.SyncBatchNorm`` needs a GPU and is no ``BatchNorm2d``. This one uses two small
collectives of any backend, and the dense kernels support it. W ranks compute the values and
gradients of one process on the joined batch, also where the parts are uneven or empty.

Backward, with n the values of a channel over all ranks and x^ the normalised ones:

    dL/dx = gamma / sigma (dL/dy - sum(dL/dy) / n - x^ sum(dL/dy x^) / n),    sums over all ranks

so each rank must scale its loss by its share of the joined batch (combiners do).

Legend: C channels, W ranks; ``z`` the input, [B, C, ...].
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..._collectives import all_gather_into

aten = torch.ops.aten
HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"),
)


def joined_statistics(z: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and biased variance [C] over all ranks' samples, and the values per channel."""
    channels = z.shape[1]
    wide = torch.float32 if z.device.type == "mps" else torch.float64
    mine = z.new_zeros(2 * channels + 1, dtype=wide)
    if z.numel():
        exact = z if z.dtype in (torch.float32, torch.float64) else z.float()
        variance, mean = torch.var_mean(exact, _all_but_channels(z), correction=0)
        mine[:-1] = torch.cat([mean, variance])
        mine[-1] = z.numel() // channels
    every = mine.new_empty((dist.get_world_size(group), len(mine)))
    all_gather_into(every, mine, group)
    means_WC, variances_WC = every[:, :channels], every[:, channels:-1]
    share_W1 = every[:, -1:] / every[:, -1:].sum()
    mean = (share_W1 * means_WC).sum(0)
    variance = (share_W1 * (variances_WC + (means_WC - mean).square())).sum(0)
    kind = z.dtype if z.dtype == torch.float64 else torch.float32
    return mean.to(kind), variance.to(kind), every[:, -1].sum().to(kind)


def joined_backward(
    grad: Tensor,
    z: Tensor,
    gamma: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    eps: float,
    group: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, and this rank's part of those of gamma and beta."""
    if grad.numel():
        # with constant statistics; their gradients are subtracted below
        through, gamma_grad, beta_grad = aten.native_batch_norm_backward(
            grad, z, gamma, mean, variance, None, None, False, eps, [True, True, True]
        )
    else:
        through, gamma_grad, beta_grad = grad, torch.zeros_like(mean), torch.zeros_like(mean)
    sums = torch.stack([beta_grad, gamma_grad]).to(mean.dtype)
    dist.all_reduce(sums, group=group)
    inverse = (variance + eps).rsqrt()
    slope = gamma.to(mean.dtype) * inverse.square() * sums[1] / count
    level = gamma.to(mean.dtype) * inverse * sums[0] / count - slope * mean
    shape = [1, -1] + [1] * (z.dim() - 2)
    through = through.addcmul(z, slope.view(shape).to(z.dtype), value=-1)
    return through.sub_(level.view(shape)), gamma_grad, beta_grad


def _all_but_channels(z: Tensor) -> list[int]:
    return [d for d in range(z.dim()) if d != 1]


class _Joined(torch.autograd.Function):
    """Batch norm with statistics over all ranks."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, norm: SyncBatchNorm) -> Tensor:
        mean, variance, count = joined_statistics(z, norm.group)
        norm.remember(mean, variance, count)
        ctx.save_for_backward(z, gamma, mean, variance, count)
        ctx.eps, ctx.group = norm.eps, norm.group
        return torch.batch_norm(z, gamma, beta, mean, variance, False, 0.0, norm.eps, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, gamma, mean, variance, count = ctx.saved_tensors
        found = joined_backward(grad, z, gamma, mean, variance, count, ctx.eps, ctx.group)
        return (*found, None)


class SyncBatchNorm(_BatchNorm):
    """A batch norm whose statistics in training are those of all ranks' samples together.

    Replaces BatchNorm1d, 2d or 3d, with the same state. All ranks of ``group`` must call it equally
    often, forward and backward.
    """

    def __init__(self, num_features: int, group: Any, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.group = group

    @classmethod
    def of(cls, norm: _BatchNorm, group: Any) -> SyncBatchNorm:
        """A norm that shares the parameters and buffers of ``norm``."""
        made = cls(
            norm.num_features,
            group,
            eps=norm.eps,
            momentum=norm.momentum,
            affine=norm.affine,
            track_running_stats=norm.track_running_stats,
            device="meta",
        )
        made._parameters = norm._parameters
        made._buffers = norm._buffers
        made.training = norm.training
        for name in HOOKS:
            setattr(made, name, getattr(norm, name))
        return made

    def remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share: float | Tensor
        if self.momentum is None:  # the average of all batches
            share = self.num_batches_tracked.to(mean.dtype).reciprocal()
        else:
            share = self.momentum
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for kept, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            kept.mul_(1 - share).add_(new.to(kept.dtype) * share)

    def forward(self, z: Tensor) -> Tensor:
        if not self.training:
            return super().forward(z)
        gamma = z.new_ones(self.num_features) if self.weight is None else self.weight
        beta = z.new_zeros(self.num_features) if self.bias is None else self.bias
        apply: Callable[..., Tensor] = _Joined.apply
        return apply(z, gamma, beta, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        memo[id(self.group)] = self.group  # process groups cannot be copied
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def _check_input_dim(self, z: Tensor) -> None:
        if z.dim() < 2:
            raise ValueError(f"a batch norm takes [batch, channels, ...], found {list(z.shape)}")


def sync_batch_norm(network: nn.Module, group: Any) -> nn.Module:
    """Replace every BatchNorm1d, 2d and 3d within a network by a ``SyncBatchNorm``, in place.

    Parameters and buffers stay the same tensors under the same names. Returns the network (a new
    module if the network itself is a norm).

    Args:
        group: the process group, such as ``torch.distributed.group.WORLD``.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if isinstance(network, _BatchNorm) and type(network) in plain:
        return SyncBatchNorm.of(network, group)
    made: dict[nn.Module, SyncBatchNorm] = {}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and type(child) in plain:
                if child not in made:
                    made[child] = SyncBatchNorm.of(child, group)
                setattr(parent, name, made[child])
    return network
