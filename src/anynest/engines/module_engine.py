"""The engine that calls a network's own modules: ``network.stages``, one step per stage.

It runs networks that cannot be folded, with subclassed, parametrized, pruned or hooked modules. The
network is copied when the session is opened, in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from ..nets import AnytimeNetwork
from ..store.hardware import find_device
from .checks import check_images, check_indices, check_threads


def eval_copy(network: AnytimeNetwork) -> AnytimeNetwork:
    """A copy in eval mode, float32, on the CPU."""
    # tensors that hooks derive from parameters (pruning, weight_norm) cannot be copied with their
    # history; the copy's hooks derive them again
    derived = [
        tensor
        for module in network.modules()
        for tensor in vars(module).values()
        if isinstance(tensor, Tensor) and not tensor.is_leaf
    ]
    memo: dict[int, object] = {id(tensor): tensor.detach().clone() for tensor in derived}
    return copy.deepcopy(network, memo).to("cpu", torch.float32).eval()


class ModuleSession:
    """A network's modules in PyTorch; see :class:`~anynest.engines.session.Session`.

    Args:
        network: any network with ``stages``.
        threads: torch's threads within one step, set in each thread that steps; None keeps torch's.
        device: where to compute.

    Raises:
        ValueError: invalid ``threads``, or a device that is not available.
    """

    backend = "torch"

    def __init__(
        self,
        network: AnytimeNetwork,
        *,
        threads: int | None = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_stages = network.num_stages
        self.num_classes = network.num_classes
        self.in_channels = network.in_channels
        self.threads = check_threads(threads)
        self.device = find_device(device)
        with torch.inference_mode(False):  # usable in and out of inference mode
            self.network: AnytimeNetwork = eval_copy(network).to(self.device)
        self._closed = False

    def begin(self, x: Tensor) -> ModuleEvaluation:
        """Start the evaluation of images ``[B, C, H, W]``, float32 and normalised."""
        if self._closed:
            raise RuntimeError("the session is closed; open another")
        check_images(x, self.in_channels)
        return ModuleEvaluation(self, x.detach().to(self.device, copy=True))

    def close(self) -> None:
        """Refuse further batches; running evaluations may finish."""
        self._closed = True


class ModuleEvaluation:
    """One batch; a step is one stage. See :class:`~anynest.engines.session.Evaluation`."""

    def __init__(self, session: ModuleSession, x: Tensor) -> None:
        self.stage = 0
        self.num_stages = session.num_stages
        self._threads, self._device = session.threads, session.device
        self._stages: Iterator[tuple[int, Tensor]] | None = session.network.stages(x)
        self._rows = torch.arange(len(x), device=self._device)

    def step(self) -> Tensor:
        """Compute the next stage: its logits ``[B, K]``."""
        if self._stages is None:
            raise RuntimeError("the evaluation is closed; begin another")
        if self.stage == self.num_stages:
            raise RuntimeError("every stage is finished; begin another evaluation")
        if self._threads is not None and self._threads != torch.get_num_threads():
            torch.set_num_threads(self._threads)
        try:
            with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                _, logits = next(self._stages)
                logits = logits.float().index_select(0, self._rows)
        except BaseException:
            self.close()
            raise
        self.stage += 1
        return logits

    def compact(self, indices: Tensor) -> None:
        """Continue with some samples; ``stages`` still computes the others."""
        if self._stages is None:
            raise RuntimeError("the evaluation is closed; begin another")
        self._rows = self._rows[check_indices(indices, len(self._rows)).to(self._device)]

    def cancel(self) -> None:
        """No effect: a running stage is finished."""

    def close(self) -> None:
        """Release the activations; a second call has no effect."""
        self._stages = None
