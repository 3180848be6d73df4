"""OSGD at the price of SGD: loss weights that are found now and then, and kept in between.

OSGD's update is the gradient of ``sum_i w_i L_i`` with ``L^T w = 1`` (``Stats.loss_weights``). A step that
*refreshes* finds w from the tasks' gradients, as every step of plain OSGD does; the steps up to the
next one take a single ordinary backward pass of ``sum_i w_i L_i`` with the w that was kept.

Two quantities tell how stale w is, and what that can do; G is the tasks' Gram matrix:

- drift: the relative error that the kept weights v would have made in the update of the step that
  refreshes, ``||sum_i (v_i - w_i) g_i|| / ||sum_i w_i g_i||
  = sqrt((v - w)^T G (v - w)) / sqrt(w^T G w)``.
- amplification: ``sum_i |w_i| ||g_i|| / ||sum_i w_i g_i||``. Gradients that have each changed by a
  share e since w was found put an error of at most amplification times e into the update.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..gradients.task_gradients import index_on, numbers_on, wide_dtype

RefreshEvery = int | Literal["auto"]

# Times the amplification of S orthogonal gradients of one norm, which is sqrt(S).
MOST_AMPLIFICATION = 2.0
NOISE_SHARES = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0)


def drift(gram_SS: Tensor, weights_S: Tensor, kept_S: Tensor) -> Tensor:
    """Relative error of the update that ``kept`` makes in place of ``weights``; 0 for no update.

    >>> drift(torch.eye(2), torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0]))
    tensor(0.2000)
    """
    error = _square(gram_SS, kept_S - weights_S)
    update = _square(gram_SS, weights_S)
    return torch.where(error == 0, 0.0, error / update).sqrt()


def amplification(gram_SS: Tensor, weights_S: Tensor) -> Tensor:
    """How many times the gradients' relative change the update's may be: at least 1.

    >>> amplification(torch.ones(2, 2), torch.tensor([-4.0, 5.0]))
    tensor(9.)
    """
    parts = (weights_S.abs() * gram_SS.diagonal().clamp(min=0).sqrt()).sum(-1)
    return torch.where(parts == 0, 1.0, parts / _square(gram_SS, weights_S).sqrt())


def _square(gram_SS: Tensor, weights_S: Tensor) -> Tensor:
    """``||sum_i w_i g_i||^2``, [...] for weights [..., S]."""
    return (weights_S @ gram_SS * weights_S).sum(-1).clamp(min=0)


def noisy_weights(
    gram_SS: Tensor, target_S: Tensor, order: Sequence[int], shares: Sequence[float]
) -> Tensor:
    """[R, S] weights with ``L^T w = target`` for L of the gradients with noise, one per share.

    Independent noise of share r in each gradient makes the Gram matrix ``G + r diag(G)`` in the
    mean. No remainder is then smaller than a share r of its row, so no coefficient and no weight is
    large without reason. A share of 0 gives OSGD's own w, a very large one the target itself: the
    (normalized) sum of the losses.
    """
    index = index_on(tuple(order), gram_SS.device)
    gram = gram_SS.index_select(0, index).index_select(1, index)
    noise = numbers_on(tuple(shares), gram.device).to(gram.dtype)
    rest = gram + noise[:, None, None] * torch.diag(gram.diagonal())
    weights = target_S.index_select(0, index).expand(len(shares), -1).clone()
    lower = []
    for j in range(len(order) - 1):  # LDL^T, column by column
        left = rest[:, j, j, None]
        column = torch.where(left == 0, 0.0, rest[:, j + 1 :, j] / left)
        lower.append(column)
        rest = rest.clone()
        rest[:, j + 1 :, j + 1 :] -= column[:, :, None] * rest[:, None, j, j + 1 :]
    for j in reversed(range(len(order) - 1)):  # L^T w = target, from the last row up
        weights[:, j] -= (lower[j] * weights[:, j + 1 :]).sum(-1)
    back = torch.empty_like(weights)
    back[:, index] = weights
    return back


def bounded_weights(
    gram_SS: Tensor, weights_S: Tensor, coefficients_SS: Tensor, order: Sequence[int]
) -> Tensor:
    """[S] the weights to keep: w itself where its amplification is at most ``2 sqrt(S)``.

    That is twice what S orthogonal gradients of one norm have. Else those of the smallest share of
    noise that brings it there (of least amplification, should none do), so that directions which
    stand on next to nothing lose their say first.
    """
    target = coefficients_SS.T @ weights_S
    noisy = noisy_weights(gram_SS, target, order, NOISE_SHARES)
    choices = torch.cat([weights_S[None], noisy])
    found = amplification(gram_SS, choices)
    good = found <= MOST_AMPLIFICATION * len(order) ** 0.5
    first = torch.where(good.any(), good.to(found.dtype).argmax(), found.argmin())
    return choices.index_select(0, first.reshape(1))[0]


class Refresh:
    """The kept weights, and when they are found anew.

    Args:
        every: k, for each k-th step; or "auto": the interval doubles after a refresh whose drift is
            at most half of ``tolerance``, and halves after one above it.
        tolerance: see above; a relative error of the update.
        longest: the largest interval of "auto"; the smallest is 1.
    """

    def __init__(self, every: RefreshEvery, tolerance: float, longest: int) -> None:
        self.every = every
        self.tolerance = tolerance
        self.longest = longest
        self.interval = 1 if every == "auto" else int(every)
        self.age = 0  # steps taken with the kept weights
        self.tasks: tuple[int, ...] = ()  # whose weights they are; none, if there are none
        self.weights = torch.empty(0)
        self._met: tuple[int, ...] | None = None  # the parameters, by id; None before a first step

    def meet(self, leaves: Sequence[Tensor]) -> None:
        """Drop the weights where they were found on other parameters."""
        met = tuple(map(id, leaves))
        if self._met is not None and self._met != met:
            self.tasks = ()
        self._met = met

    def is_due(self, tasks: Sequence[int]) -> bool:
        """Whether a step with these losses must refresh."""
        return self.tasks != tuple(tasks) or self.age + 1 >= self.interval

    def passed(self) -> None:
        """Count a step with the kept weights."""
        self.age += 1

    def on(self, device: torch.device) -> Tensor:
        """[s] the kept weights."""
        self.weights = self.weights.to(device, wide_dtype(device))
        return self.weights

    def keep(
        self,
        tasks: Sequence[int],
        weights_S: Tensor,
        coefficients_SS: Tensor,
        gram_SS: Tensor,
        order: Sequence[int],
        fallback: float | None,
    ) -> Tensor | None:
        """Take what a refresh found; its drift, where older weights of the same losses are there.

        Weights that are not finite (a gradient overflowed) are not kept, and what was due stays
        due: the next step refreshes again. With a ``fallback`` that is not asked, since it would
        wait for the device: the older weights stay, or all are ``fallback`` if there are none.
        """
        known = self.tasks == tuple(tasks)
        old = self.on(weights_S.device) if known else None
        moved = None if old is None else drift(gram_SS, weights_S, old)
        new = bounded_weights(gram_SS, weights_S, coefficients_SS, order)
        good = torch.isfinite(new).all()
        if fallback is None:
            readings = [good.to(new.dtype)] if moved is None else [good.to(new.dtype), moved]
            finite, *rest = torch.stack(readings).tolist()
            if not finite:
                return moved
            if rest:
                self._adapt(rest[0])
        else:
            new = torch.where(good, new, torch.full_like(new, fallback) if old is None else old)
        if old is None:
            self.weights = new
        else:
            old.copy_(new)  # in place, where a captured graph reads it
        self.tasks, self.age = tuple(tasks), 0
        return moved

    def _adapt(self, moved: float) -> None:
        if self.every != "auto":
            return
        if moved <= self.tolerance / 2:
            self.interval = min(2 * self.interval, self.longest)
        elif not moved <= self.tolerance:
            self.interval = max(self.interval // 2, 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; float64 goes through them bit for bit."""
        return {
            "age": self.age,
            "interval": self.interval,
            "tasks": list(self.tasks),
            "weights": self.weights.tolist() if self.tasks else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
                f" found {weights}: load a state as state_dict() gave it"
            )
        self.age = max(int(state["age"]), 0)
        if self.every == "auto":
            self.interval = min(max(int(state["interval"]), 1), self.longest)
        self.tasks = tasks
        # float64 here; ``on`` brings it to the step's device
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self._met = None


def check_refresh(every: RefreshEvery, tolerance: float, longest: int) -> Refresh | None:
    """The settings as a ``Refresh``; None for a refresh at every step."""
    if every != "auto" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(
            f"refresh must be a whole number from 1 or 'auto', found {every!r}: try 16"
        )
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance > 0:
        raise ValueError(f"tolerance must be a number above 0, found {tolerance!r}: try 0.3")
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise ValueError(f"longest must be a whole number from 1, found {longest!r}: try 64")
    return None if every == 1 else Refresh(every, tolerance, longest)
