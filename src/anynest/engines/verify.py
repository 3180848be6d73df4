"""Comparison of an engine's logits with the network's.

A session is verified in two steps: the folded weights against ``network.stages`` when it is opened,
and ONNX executors against the torch engine on the folded weights when they are made. Both compare
all stages on two random images; the tolerance is relative to the largest logit of the stage.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..nets import AnytimeNetwork
from .folding import FoldedNetwork, FoldError
from .module_engine import ModuleSession
from .session import stages
from .torch_engine import TorchSession

TOLERANCE = 1e-3
SIZE = 16  # pixels per side


def fold(network: AnytimeNetwork) -> FoldedNetwork:
    """Fold a network, and compare the result with ``network.stages`` in eval mode.

    Raises:
        FoldError: a module is not plain, or the logits differ by more than ``TOLERANCE``.
    """
    folded = FoldedNetwork.of(network)
    x = random_images(2, network.in_channels, SIZE, SIZE)
    expected = ModuleSession(network, threads=None).begin(x)
    error = difference(torch_logits(folded, x), [logits for _, logits in stages(expected)])
    if not error <= TOLERANCE:
        raise FoldError(
            f"folded weights must give the logits of the network's stages within {TOLERANCE:g} of "
            f"the largest, found {error:.1e}"
        )
    return folded


def random_images(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Normal images, float32 on the CPU, always the same."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(
        (batch, channels, height, width), generator=generator, dtype=torch.float32, device="cpu"
    )


def torch_logits(network: FoldedNetwork, x: Tensor) -> list[Tensor]:
    """Every stage's logits ``[B, K]`` by the torch engine."""
    return [logits for _, logits in stages(TorchSession(network, threads=None).begin(x))]


def difference(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest difference of logits, relative to the largest expected logit of the stage.

    Infinite where only one of both is finite; where neither is, there is nothing to compare.
    """
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        finite = theirs.isfinite()
        if not torch.equal(ours.isfinite(), finite):
            return float("inf")
        error = (ours - theirs)[finite].abs()
        if len(error):
            worst = max(worst, float(error.max() / theirs[finite].abs().max().clamp(min=1e-6)))
    return worst
