r"""OSGD at the cost of SGD: loss weights computed at every k-th step and kept in between.

OSGD's update is the gradient of :math:`\sum_i w_i L_i` with :math:`L^T w = 1`
(``Stats.loss_weights``). A step that *refreshes* computes w from the tasks' gradients, as every
step of plain OSGD does. The k - 1 steps after it take one ordinary backward pass of
:math:`\sum_i w_i L_i` with the w that was kept.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..gradients.task_gradients import wide_dtype


def drift(gram_SS: Tensor, weights_S: Tensor, kept_S: Tensor) -> Tensor:
    r"""The relative error of the update with kept weights v in place of w; 0 for no error.

    .. math:: \frac{\| \sum_i (v_i - w_i) g_i \|}{\| \sum_i w_i g_i \|}
        = \sqrt{\frac{(v - w)^T G (v - w)}{w^T G w}}

    with G the Gram matrix of the gradients.

    >>> drift(torch.eye(2), torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0]))
    tensor(0.2000)
    """
    error = _square(gram_SS, kept_S - weights_S)
    update = _square(gram_SS, weights_S)
    return torch.where(error == 0, 0.0, error / update).sqrt()


def _square(gram_SS: Tensor, weights_S: Tensor) -> Tensor:
    """``||sum_i w_i g_i||^2``."""
    return (weights_S @ gram_SS * weights_S).sum(-1).clamp(min=0)


class KeptWeights:
    """The kept loss weights, and when to compute them anew: at every ``every``-th step.

    Attributes:
        weights: [s] the weights.
        tasks: the losses whose weights they are; empty if there are none.
        age: steps taken with them.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.age = 0
        self.tasks: tuple[int, ...] = ()
        self.weights = torch.empty(0)
        # the losses' names and the parameters' ids; None before the first step
        self._computed_for: tuple[tuple[str, ...] | None, tuple[int, ...]] | None = None

    def begin(self, parameters: Sequence[Tensor], names: tuple[str, ...] | None = None) -> None:
        """Drop weights that were computed for other parameters, or for losses of other names."""
        found = (names, tuple(map(id, parameters)))
        if self._computed_for is not None and self._computed_for != found:
            self.tasks = ()
        self._computed_for = found

    def is_due(self, tasks: Sequence[int]) -> bool:
        """Whether a step with these losses must refresh."""
        return self.tasks != tuple(tasks) or self.age + 1 >= self.every

    def count(self, *, refreshed: bool) -> None:
        """Count a step."""
        self.age = 0 if refreshed else self.age + 1

    def on(self, device: torch.device) -> Tensor:
        """[s] the weights, moved to a device."""
        self.weights = self.weights.to(device, wide_dtype(device))
        return self.weights

    def of(self, tasks: Sequence[int], device: torch.device) -> Tensor:
        """[s] the weights of these losses; 0 for a loss that the refresh skipped."""
        kept = self.on(device)
        if self.tasks == tuple(tasks):
            return kept
        places = [self.tasks.index(i) if i in self.tasks else len(self.tasks) for i in tasks]
        return torch.cat([kept, kept.new_zeros(1)])[torch.tensor(places, device=device)]

    def keep(
        self,
        tasks: Sequence[int],
        weights_S: Tensor,
        gram_SS: Tensor,
        fallback: float | None,
    ) -> Tensor | None:
        """Keep the weights of a refresh.

        Weights that are not finite (a gradient overflowed) are not kept, and the next step
        refreshes again.

        Args:
            tasks: the losses.
            weights_S: their weights.
            gram_SS: the Gram matrix of their gradients.
            fallback: if not None, the weights are not read, which would synchronize. Non-finite
                weights are then replaced by the older ones, or by this number if there are none.

        Returns:
            The drift, if older weights of the same losses were kept.
        """
        old = self.on(weights_S.device) if self.tasks == tuple(tasks) else None
        moved = None if old is None else drift(gram_SS, weights_S, old)
        is_finite = torch.isfinite(weights_S).all()
        if fallback is None:
            if not is_finite:
                return moved
            new = weights_S
        else:
            instead = torch.full_like(weights_S, fallback) if old is None else old
            new = torch.where(is_finite, weights_S, instead)
        if old is None:
            self.weights = new.clone()
        else:
            old.copy_(new)  # in place: a captured CUDA graph reads this memory
        self.tasks = tuple(tasks)
        self.count(refreshed=True)
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, which preserve float64 bit for bit."""
        return {
            "age": self.age,
            "tasks": list(self.tasks),
            "weights": self.weights.tolist() if self.tasks else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            found = sorted(state) if isinstance(state, dict) else state
            raise ValueError(
                f"state of refresh must hold {sorted(self.state_dict())}, found {found}:"
                " load the state of OSGD with the same refresh"
            )
        tasks = tuple(int(i) for i in state["tasks"])
        weights = [float(w) for w in state["weights"]]
        if len(weights) != len(tasks) or not all(map(math.isfinite, weights)):
            raise ValueError(
                f"state of refresh must hold a finite weight for each of its tasks {list(tasks)},"
                f" found {weights}: load a state as state_dict() returned it"
            )
        self.age = max(int(state["age"]), 0)
        self.tasks = tasks
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self._computed_for = None
