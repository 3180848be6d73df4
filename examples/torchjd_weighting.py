"""Orthogonalized SGD as a TorchJD ``Weighting``, and the same step by anynest.

    pip install torchjd
    python examples/torchjd_weighting.py

OSGD's update is the gradient of ``sum_i w_i L_i`` with ``L^T w = 1``, where L is the unit
lower-triangular factor of the tasks' Gram matrix, ``G = L D L^T``. So it is a weighting of ten lines,
for TorchJD's ``autojac`` and ``autogram`` alike. Gradients that are parallel, up to rounding, have
no such factor: anynest's own OSGD minds them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchjd.aggregation import GramianWeightedAggregator, Weighting
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad

from anynest import OSGD


class OSGDWeighting(Weighting):
    """The loss weights w of Orthogonalized SGD, tasks in order of priority."""

    def forward(self, gramian: Tensor, /) -> Tensor:
        root = torch.linalg.cholesky(gramian.double())
        lower = root / root.diagonal()  # L of G = L D L^T
        ones = torch.ones(len(gramian), 1, dtype=lower.dtype, device=lower.device)
        weights = torch.linalg.solve_triangular(lower.T, ones, upper=True, unitriangular=True)
        return weights[:, 0].to(gramian.dtype)


def losses_of(net: nn.Module) -> list[Tensor]:
    """Three losses of a small network, which share all of it but the last layer's rows."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 8, generator=generator)
    y = torch.randint(0, 4, (32,), generator=generator)
    return [F.cross_entropy(logits, y) for logits in net(x).chunk(3, dim=1)]


def gradient(method: str) -> Tensor:
    """[P] what ``method`` leaves in ``.grad``."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12))
    parameters = list(net.parameters())
    if method == "anynest":
        OSGD().backward(losses_of(net), parameters)
    elif method == "autojac":
        backward(losses_of(net), inputs=parameters, parallel_chunk_size=1)
        jac_to_grad(parameters, GramianWeightedAggregator(OSGDWeighting()))
    else:
        engine = Engine(
            net, batch_dim=None
        )  # before the forward pass; a loss is of the whole batch
        losses = torch.stack(losses_of(net))
        losses.backward(OSGDWeighting()(engine.compute_gramian(losses)))
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


if __name__ == "__main__":
    ours = gradient("anynest")
    for other in ("autojac", "autogram"):
        error = (gradient(other) - ours).norm() / ours.norm()
        print(f"TorchJD's {other} and anynest differ by {error:.1e}")
