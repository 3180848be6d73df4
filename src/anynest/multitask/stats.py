"""What one combination did: norms, cosines, projection coefficients, equivalent loss weights."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stats:
    """Measurements of one ``backward``, as tensors on the device: reading one waits for it.

    With scopes (``OSGD(scope="group")``, of G parameter groups, or "tensor", of G tensors) weights
    are [G, S] and coefficients [G, S, S], one for each in order; the rest is of whole gradients.

    losses [S]: the losses' values.
    loss_weights [S]: the equivalent loss weights w. The gradient just accumulated is that of
        ``sum_i w_i L_i``; where a method averages over participants, this holds on the entries that
        every task touches. Zero for a loss that was skipped or whose remainder was mere rounding.
    coefficients [S, S]: L of ``g_i = sum_j L_ij u_j``, with u the orthogonal components; unit
        lower-triangular if read in priority order. For plain OSGD ``L^T w = 1``, with normalizing
        ``L^T w = s`` where s_i is the factor that normalizes g_i (and either divided by S under
        reduction "mean"). None where nothing is projected.
    gram [S, S]: dot products of the tasks' gradients over common entries; None where they were not
        computed, as in ``WeightedSGD``'s single backward pass. NaN beside a skipped loss.
    skipped: indices of the losses left out because they were not finite (in every micro-batch).
    refreshed: False in a step that took one ordinary backward pass with weights of an earlier one
        (``OSGD(refresh=...)``); coefficients, gram and what follows from them are None then.
    drift: the relative error in this step's update that the weights kept until now would have made;
        None where none were kept, and in plain OSGD.
    sent_bytes: what this rank's collectives sent for the step; 0 without a group.
    """

    losses: Tensor
    loss_weights: Tensor
    coefficients: Tensor | None = None
    gram: Tensor | None = None
    skipped: tuple[int, ...] = ()
    refreshed: bool = True
    drift: Tensor | None = None
    sent_bytes: int = 0

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
        """Lists of plain numbers for JSON; what is not finite becomes None."""

        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [plain(v) for v in value]
            return value if math.isfinite(value) else None

        tensors = {
            "losses": self.losses,
            "loss_weights": self.loss_weights,
            "norms": self.norms,
            "cosines": self.cosines,
            "coefficients": self.coefficients,
        }
        out: dict[str, Any] = {
            name: None if value is None else plain(value.tolist())
            for name, value in tensors.items()
        }
        drift = None if self.drift is None else plain(self.drift.item())
        return {
            **out,
            "skipped": list(self.skipped),
            "refreshed": self.refreshed,
            "drift": drift,
        }
