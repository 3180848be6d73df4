"""Orthogonalized SGD: Algorithm 2 of Wan et al., ICML 2020.

Line 13 overwrites g_i, so line 12 projects onto gradients that are orthogonal already: Gram-Schmidt
without normalizing. The update is the sum of what is left (line 14). Deviations: reduction "mean"
divides that sum by the number of losses, as equation 1 does; a remainder below the gradient's own
rounding counts as zero; zero gradients are left zero where the paper divides by their norm.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import check_choice, check_priority, priority_of
from ..combiner import Combiner, OnNonfinite
from ..gradients.combination import Combination, OnePass
from ..gradients.scopes import Scope, project_within
from ..gradients.task_gradients import TaskGradients
from .calibration import Constant, ConstantC
from .raw import project_raw
from .refresh import RefreshEvery, check_refresh
from .rules import gram_matrix, normalize, orthogonalize, update_norm


class OSGD(Combiner):
    r"""Each task's gradient, less what lies along those of higher priority.

    .. math:: u_i = g_i - \sum_{j < i} \frac{\langle g_i, u_j \rangle}{\langle u_j, u_j \rangle}
        u_j, \qquad g = \sum_i u_i

    To first order, a step along g does to the first task what its own gradient alone would:
    :math:`\langle g, g_1 \rangle = \|g_1\|^2`. The same g is the gradient of
    :math:`\sum_i w_i L_i` with :math:`L^T w = 1` (``Stats.loss_weights``). With one loss this is
    ``loss.backward()``, bit for bit.

    Args:
        priority: loss indices from 0, highest first; None for the order of the losses.
        normalize: bring every gradient to norm ``sqrt(d_i) * C`` first (line 8; "OSGD-norm").
        reduction: "sum" as in line 14, or "mean", which divides it by the number of losses.
        C: for normalizing, a positive number or "calibrated" (see ``NormSGD``; here against SGD
            under the same reduction).
        calibration_steps: see C.
        on_nonfinite: "raise"; "skip" to leave a non-finite loss out of this step, where the others
            keep their order; or "ignore" (see ``Combiner``).
        group: see ``Combiner``.
        refresh: 1 for the exact method. k > 1 finds w at every k-th step and takes one ordinary
            backward pass of ``sum_i w_i L_i`` at the others, at the price of SGD. "auto" adapts the
            interval to w's drift. What keeps a stale w harmless is said in ``refresh``. Every step
            is exact while C is calibrated, and where the losses are not those that w was found for
            (one is skipped, or their number is another) or the parameters are others.
        tolerance: for "auto", the largest drift: the relative error in a refresh's update that the
            weights kept until then would have made. Above it the interval halves, at half of it or
            below it doubles.
        longest: for "auto", the longest interval in steps.
        scope: "all" projects over all parameters at once, as the paper does; "group" within each
            parameter group (``parameters`` must then be groups, as ``optimizer.param_groups`` are)
            and "tensor" within each tensor. Normalizing is of whole gradients in any case.
        projection: "orthogonal", or "raw" to project onto the gradients as they came (see ``raw``).

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 3.0])
    >>> stats = OSGD().backward([w @ a, w @ b], [w])
    >>> w.grad
    tensor([1., 3.])
    >>> stats.loss_weights.tolist()
    [3.0, 1.0]
    """

    def __init__(
        self,
        priority: Sequence[int] | None = None,
        normalize: bool = False,
        reduction: Literal["sum", "mean"] = "sum",
        C: ConstantC = 0.5,
        *,
        calibration_steps: int = 100,
        on_nonfinite: OnNonfinite = "raise",
        group: Any = None,
        refresh: RefreshEvery = 1,
        tolerance: float = 0.3,
        longest: int = 64,
        projection: Literal["orthogonal", "raw"] = "orthogonal",
        scope: Scope = "all",
    ) -> None:
        super().__init__(on_nonfinite, group)
        self.priority = None if priority is None else priority_of(priority)
        if not isinstance(normalize, bool):
            raise TypeError(f"normalize must be True or False, found {normalize!r}")
        self.normalize = normalize
        self.reduction = check_choice("reduction", reduction, ("sum", "mean"))
        self.constant = Constant(C, calibration_steps)
        self.refresh = check_refresh(refresh, tolerance, longest)
        self.scope = check_choice("scope", scope, ("all", "group", "tensor"))
        if scope != "all" and refresh != 1:
            raise ValueError(
                f"refresh must be 1 with scope={scope!r}, found {refresh!r}: weights of a scope's own"
                " are no weights of the losses"
            )
        self.projection = check_choice("projection", projection, ("orthogonal", "raw"))
        if projection == "raw" and refresh != 1:
            raise ValueError(f"refresh must be 1 with projection='raw', found {refresh!r}")
        if refresh == "auto" and on_nonfinite == "ignore":
            raise ValueError(
                "refresh='auto' reads the drift from the device, which on_nonfinite='ignore' rules"
                " out: take a number for refresh"
            )

    def check_count(self, count: int) -> None:
        check_priority(self.priority, count)

    def rule(
        self,
        rows: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        order = self._order(list(range(rows.num_tasks) if tasks is None else tasks))
        ones = torch.ones_like(rows.new(rows.num_tasks))
        share = ones / rows.num_tasks if self.reduction == "mean" else ones
        unit = normalize(rows, C=1.0) if self.normalize else rows
        project = project_raw if self.projection == "raw" else orthogonalize
        projected = project_within(unit, order, project)
        coefficients = projected.coefficients
        if self.normalize:
            if self.constant.wants_norms:
                sgd = update_norm(rows, share) / loss_scale
                self.constant.observe(sgd, projected.norm(share))
            share = share * self.constant.value() * loss_scale
            scales = unit.in_terms_of_stored(ones)
            safe = torch.where(scales == 0, ones, scales)
            # L of the gradients as they came: projecting does not depend on their scale
            coefficients = coefficients / safe[:, None] * safe
        return Combination(
            projected.sum(share),
            projected.in_terms_of_stored(share),
            coefficients,
            gram_matrix(rows),
        )

    def scopes_of(
        self, leaves: Sequence[Tensor], groups: dict[int, int] | None
    ) -> tuple[int, ...] | None:
        if self.scope == "all":
            return None
        if self.scope == "tensor":
            return tuple(range(len(leaves)))
        if groups is None:
            raise ValueError(
                "scope='group' needs parameter groups, found tensors alone: pass"
                " optimizer.param_groups"
            )
        return tuple(groups[id(leaf)] for leaf in leaves)

    def _order(self, tasks: Sequence[int]) -> list[int]:
        """The positions of ``tasks`` in order of priority."""
        if self.priority is None:
            return list(range(len(tasks)))
        return [tasks.index(i) for i in self.priority if i in tasks]

    def meet(self, leaves: Sequence[Tensor]) -> None:
        if self.refresh is not None:
            self.refresh.meet(leaves)

    def takes_one_pass(self, tasks: Sequence[int]) -> bool:
        if self.refresh is None or (self.normalize and self.constant.wants_norms):
            return False
        return not self.refresh.is_due(tasks)

    def single(self, losses: list[Tensor], tasks: Sequence[int]) -> OnePass:
        assert self.refresh is not None
        kept = self.refresh.on(losses[0].device)
        known = self.refresh.tasks
        if known != tuple(tasks):  # a later micro-batch, in which others are finite
            places = [known.index(i) if i in known else len(known) for i in tasks]
            kept = torch.cat([kept, kept.new_zeros(1)])[torch.tensor(places, device=kept.device)]
        seeds: list[Tensor | None] = [
            w.to(loss.device, loss.dtype).reshape(loss.shape)
            for w, loss in zip(kept.unbind(), losses, strict=True)
        ]
        return OnePass(losses, seeds, kept.clone())

    def finish(self, tasks: Sequence[int], result: Combination, single: bool) -> Combination:
        if self.refresh is None:
            return result
        if single:
            self.refresh.passed()
            return replace(result, refreshed=False)
        assert result.coefficients is not None
        assert result.gram is not None
        share = 1 / len(tasks) if self.reduction == "mean" else 1.0
        moved = self.refresh.keep(
            tasks,
            result.loss_weights,
            result.coefficients,
            result.gram,
            self._order(tasks),
            fallback=share if self.on_nonfinite == "ignore" else None,
        )
        return replace(result, drift=moved)

    def settings(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "priority": self.priority,
            "normalize": self.normalize,
            "reduction": self.reduction,
        }
        if self.normalize:
            shown["C"] = self.constant.C
        if self.scope != "all":
            shown["scope"] = self.scope
        if self.projection != "orthogonal":
            shown["projection"] = self.projection
        if self.refresh is not None:
            shown["refresh"] = self.refresh.every
            if self.refresh.every == "auto":
                shown |= {"tolerance": self.refresh.tolerance, "longest": self.refresh.longest}
        return shown

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.normalize:
            state |= self.constant.state_dict()
        if self.refresh is not None:
            state["refresh"] = self.refresh.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        if self.refresh is not None:
            if "refresh" not in rest:
                raise ValueError(
                    f"state of OSGD with refresh must hold 'refresh', found {sorted(rest)}: load"
                    " the state of the same method with the same options"
                )
            self.refresh.load_state_dict(rest.pop("refresh"))
        if self.normalize:
            self.constant.load_state_dict(rest)
        else:
            super().load_state_dict(rest)
