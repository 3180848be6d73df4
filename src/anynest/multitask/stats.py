"""What one combination measured: norms, cosines, projection coefficients, loss weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .gradients.step import Combination


@dataclass(frozen=True, eq=False)
class Stats:
    r"""Measurements of one step, as tensors on the device: reading one waits for the device.

    Attributes:
        losses: [S] the losses' values.
        loss_weights: [S] the equivalent loss weights w: the step's gradient is that of
            :math:`\sum_i w_i L_i`. Where a method averages over participants, this holds for the
            entries that every task touches. 0 for a skipped loss or a remainder that was rounding.
        coefficients: [S, S] L of :math:`g_i = \sum_j L_{ij} u_j` with the orthogonal components u;
            unit lower-triangular in priority order. For plain OSGD :math:`L^T w = 1`, with
            normalizing :math:`L^T w = s`, where s_i is the factor that normalizes g_i (either
            divided by S under reduction "mean"). None without a projection.
        gram: [S, S] dot products of the tasks' gradients over common entries; None if not computed,
            as in the single pass of ``WeightedSGD``. NaN for a skipped loss. Those of ``metric``, if
            OSGD has one, and so are norms and cosines.
        skipped: indices of the losses left out, in every micro-batch, since they were not finite.
        refreshed: False for a step of ``OSGD(refresh=k)`` that reused the loss weights of an
            earlier step; coefficients and gram are then None.
        drift: the relative error that the kept loss weights would have caused in this step's update
            (``methods.refresh.drift``); None where none were kept.
        sent_bytes: bytes sent by this rank's collectives in the step; 0 without a group.
    """

    losses: Tensor
    loss_weights: Tensor
    coefficients: Tensor | None = None
    gram: Tensor | None = None
    skipped: tuple[int, ...] = ()
    refreshed: bool = True
    drift: Tensor | None = None
    sent_bytes: int = 0

    @classmethod
    def of(
        cls, found: Combination, values_S: Tensor, tasks: Sequence[int], sent_bytes: int = 0
    ) -> "Stats":
        """The measurements of ``tasks``, extended to all S losses."""
        count = len(values_S)
        is_whole = len(tasks) == count

        def extended(part: Tensor | None) -> Tensor | None:
            if part is None or is_whole:
                return part
            index = torch.tensor(tasks, device=part.device)
            out = part.new_full((*part.shape[:-2], count, count), torch.nan)
            out[..., index[:, None], index] = part
            return out

        weights = found.loss_weights
        if not is_whole:
            weights = weights.new_zeros(*weights.shape[:-1], count)
            weights[..., torch.tensor(tasks, dtype=torch.long, device=weights.device)] = (
                found.loss_weights
            )
        return cls(
            values_S,
            weights,
            extended(found.coefficients),
            extended(found.gram),
            skipped=tuple(i for i in range(count) if i not in tasks),
            refreshed=found.refreshed,
            drift=found.drift,
            sent_bytes=sent_bytes,
        )

    @property
    def norms(self) -> Tensor | None:
        """[S] the norm of each task's gradient, in units of loss per unit of parameter."""
        return None if self.gram is None else self.gram.diagonal().sqrt()

    @property
    def cosines(self) -> Tensor | None:
        """[S, S] cosines between the tasks' gradients; 0 with a zero gradient."""
        if self.gram is None:
            return None
        norms = self.gram.diagonal().sqrt()
        scale = torch.where(norms == 0, torch.ones_like(norms), norms)
        return (self.gram / scale[:, None] / scale).clamp(-1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Lists of plain numbers for JSON; non-finite numbers become None."""

        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [plain(v) for v in value]
            return value if math.isfinite(value) else None

        names = ("losses", "loss_weights", "norms", "cosines", "coefficients", "drift")
        tensors = {name: getattr(self, name) for name in names}
        return {
            **{name: None if t is None else plain(t.tolist()) for name, t in tensors.items()},
            "skipped": list(self.skipped),
            "refreshed": self.refreshed,
        }
