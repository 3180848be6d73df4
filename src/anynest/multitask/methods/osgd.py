"""Orthogonalized SGD: Algorithm 2 of Wan et al., ICML 2020.

Line 13 overwrites g_i, so line 12 projects onto gradients that are orthogonal already: Gram-Schmidt
without normalization. The update is the sum of the remainders (line 14). Deviations: reduction
"mean" divides that sum by the number of losses, as equation 1 does; a remainder below the rounding
of its gradient counts as zero; zero gradients stay zero where the paper divides by their norm.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ..checks import (
    Losses,
    Names,
    Parameters,
    check_choice,
    check_priority,
    priority_of,
    whole_number,
)
from ..combiner import Combiner, OnePass, OnNonfinite
from ..gradients.diagonal import Metric
from ..gradients.task_gradients import TaskGradients
from ..stats import Combination, Stats
from .calibration import Constant, ConstantC
from .metric import MetricSource, make_metric
from .refresh import KeptWeights
from .rules import Orthogonal, normalize, orthogonalize, update_norm


class OSGD(Combiner):
    r"""Each task's gradient less its projection onto the gradients of higher priority.

    .. math:: u_i = g_i - \sum_{j < i} \frac{\langle g_i, u_j \rangle}{\langle u_j, u_j \rangle}
        u_j, \qquad g = \sum_i u_i

    To first order, a step along g changes the first task's loss as a step along its own gradient
    would: :math:`\langle g, g_1 \rangle = \|g_1\|^2`. The same g is the gradient of
    :math:`\sum_i w_i L_i` with :math:`L^T w = 1` (``Stats.loss_weights``). With one loss this is
    ``loss.backward()``, bit for bit.

    Args:
        priority: loss indices from 0, or names of a dict's losses, highest first; None for the
            order of the losses.
        normalize: normalize every gradient to norm ``sqrt(d_i) * C`` first (line 8; "OSGD-norm").
        reduction: "sum" as in line 14, or "mean", which divides it by the number of losses.
        C: for normalizing, a positive number or "calibrated" (see ``NormSGD``; here to SGD's norm
            under the same reduction).
        calibration_steps: see C.
        on_nonfinite: see ``Combiner``; a skipped loss leaves the order of the others unchanged.
        group: see ``Combiner``.
        refresh: 1 for the exact method. k > 1 computes w at every k-th step and takes one ordinary
            backward pass of :math:`\sum_i w_i L_i` in the others, at the cost of SGD. A step is
            exact in any case while C is calibrated, and if its losses or parameters are not those
            that w was computed for.
        metric: the optimizer that takes the step, so that the promise holds for that step (see
            ``methods.metric``): Adam, AdamW, NAdam, RMSprop, Adagrad or SGD. For others, a function
            from a parameter to D, a tensor of its shape (None: ones). All dot products are
            :math:`a^T D b`, and :math:`\langle g, D g_1 \rangle = \langle g_1, D g_1 \rangle`.
            While a touched parameter has no state, a step is one of plain OSGD. Not with normalize.

    Two gradients that conflict, and the combined one:

    >>> def gradient(combiner, scale=1.0):
    ...     w = torch.nn.Parameter(torch.zeros(2))
    ...     depth, seg = w @ torch.tensor([1.0, 0.0]), w @ torch.tensor([-2.0, 3.0])
    ...     gradient.stats = combiner.backward({"depth": depth, "seg": scale * seg}, [w])
    ...     return w.grad
    >>> gradient(OSGD())
    tensor([1., 3.])
    >>> gradient.stats.loss_weights.tolist()
    [3.0, 1.0]
    >>> gradient(OSGD(priority=["seg", "depth"]))  # or [1, 0]
    tensor([-1.3077,  3.4615])
    >>> gradient(OSGD(reduction="mean"))
    tensor([0.5000, 1.5000])
    >>> gradient(OSGD(normalize=True, C=1.0))  # both of norm sqrt(2), then projected
    tensor([1.4142, 1.1767])
    >>> gradient(OSGD(normalize=True, C="calibrated", calibration_steps=1)).norm()  # SGD's norm
    tensor(3.1623)
    >>> gradient(OSGD(on_nonfinite="skip"), scale=float("inf"))
    tensor([1., 0.])
    >>> kept, w = OSGD(refresh=2), torch.nn.Parameter(torch.zeros(2))
    >>> [kept.backward([w[0], w.sum()]).refreshed for _ in range(2)]
    [True, False]

    In a metric, of an optimizer or a function, ``depth`` keeps its promise for that step:

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> adam = torch.optim.Adam([w])
    >>> w.grad = torch.tensor([1.0, 2.0])
    >>> adam.step()  # D is now (1, 1/2)
    >>> adam.zero_grad()
    >>> a, b = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    >>> stats = OSGD(metric=adam).backward([w @ a, w @ b], [w])
    >>> D = torch.tensor([1.0, 0.5])
    >>> bool(abs(a @ (D * w.grad) - a @ (D * a)) < 1e-6)
    True
    >>> w.grad = None
    >>> stats = OSGD(metric=lambda parameter: torch.tensor([3.0, 1.0])).backward([w @ a, w @ b])
    >>> w.grad
    tensor([ 1.5000, -0.5000])

    Over the processes of a group, here of one:

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> gradient(OSGD(group=dist.group.WORLD))
    tensor([1., 3.])
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        priority: Sequence[int] | Sequence[str] | None = None,
        normalize: bool = False,
        reduction: Literal["sum", "mean"] = "sum",
        C: ConstantC = 0.5,
        *,
        calibration_steps: int = 100,
        on_nonfinite: OnNonfinite = "raise",
        group: Any = None,
        refresh: int = 1,
        metric: MetricSource | None = None,
    ) -> None:
        super().__init__(on_nonfinite, group)
        self.priority = None if priority is None else priority_of(priority)
        if not isinstance(normalize, bool):
            raise TypeError(f"normalize must be True or False, found {normalize!r}")
        self.normalize = normalize
        self.reduction = check_choice("reduction", reduction, ("sum", "mean"))
        self.constant = Constant(C, calibration_steps)
        self.C, self.calibration_steps = self.constant.C, self.constant.steps
        self.refresh = whole_number("refresh", refresh, 1, "try 16")
        self.kept = KeptWeights(self.refresh) if self.refresh > 1 else None
        self.metric = make_metric(metric)
        if self.metric is not None and normalize:
            raise ValueError(
                "metric and normalize=True must not be combined, found both: normalizing sets"
                " ordinary norms, so leave one of them out"
            )

    def check_count(self, count: int, names: Names) -> None:
        check_priority(self.priority, count, names)

    def rule(
        self,
        gradients: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        tasks = list(range(gradients.num_tasks) if tasks is None else tasks)
        ones = torch.ones_like(gradients.new(len(tasks)))
        share = ones / len(tasks) if self.reduction == "mean" else ones
        unit = normalize(gradients, C=1.0) if self.normalize else gradients
        components, coefficients = self.project(unit, self._order(tasks))
        if self.normalize:
            if self.constant.wants_norms:
                sgd = update_norm(gradients, share) / loss_scale
                self.constant.observe(sgd, update_norm(components, share))
            share = share * self.constant.value() * loss_scale
            scales = unit.in_terms_of_stored(ones)
            safe = torch.where(scales == 0, ones, scales)
            # L of the original gradients: the projection does not depend on their scale
            coefficients = coefficients / safe[:, None] * safe
        weights = components.in_terms_of_stored(share)
        found = Combination(weights, coefficients, gradients.known_gram)
        return found if self.kept is None else self._keep(found, tasks)

    def project(self, gradients: TaskGradients, order: Sequence[int]) -> Orthogonal:
        """The components and L, given the gradients' order of priority."""
        return orthogonalize(gradients, order)

    def _order(self, tasks: Sequence[int]) -> list[int]:
        """The positions of ``tasks`` in order of priority."""
        if self.priority is None:
            return list(range(len(tasks)))
        losses = [i if isinstance(i, int) else (self._names or ()).index(i) for i in self.priority]
        return [tasks.index(i) for i in losses if i in tasks]

    def _keep(self, found: Combination, tasks: Sequence[int]) -> Combination:
        """Keep the loss weights of a step that refreshes."""
        assert self.kept is not None
        assert found.gram is not None
        fallback = None
        if self.on_nonfinite == "ignore":
            fallback = 1 / len(tasks) if self.reduction == "mean" else 1.0
        return replace(found, drift=self.kept.keep(tasks, found.loss_weights, found.gram, fallback))

    def takes_one_pass(self, tasks: Sequence[int]) -> bool:
        if self.kept is None or (self.normalize and self.constant.wants_norms):
            return False
        return not self.kept.is_due(tasks)

    def metric_of(self, parameters: Sequence[Tensor]) -> Metric | None:
        return None if self.metric is None else self.metric.of(parameters)

    def begin(self, parameters: Sequence[Tensor], tasks: Sequence[int]) -> bool:
        if self.metric is not None:
            self.metric.check(parameters)
        if self.kept is None:
            return False
        self.kept.begin(parameters, self._names)
        one_pass = self.takes_one_pass(tasks)
        if one_pass:
            self.kept.count(refreshed=False)
        return one_pass

    def one_pass(self, losses: list[Tensor], tasks: Sequence[int]) -> OnePass:
        assert self.kept is not None
        kept = self.kept.of(tasks, losses[0].device)
        seeds = [
            w.to(loss.device, loss.dtype).reshape(loss.shape)
            for w, loss in zip(kept.unbind(), losses, strict=True)
        ]
        return OnePass(seeds, kept, refreshed=False)

    def twin(self) -> Self:
        twin = super().twin()
        twin.kept, twin.constant = copy.deepcopy(self.kept), copy.copy(self.constant)
        return twin

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.normalize:
            state |= self.constant.state_dict()
        if self.kept is not None:
            state["refresh"] = self.kept.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        if self.kept is not None:
            if "refresh" not in rest:
                raise ValueError(
                    f"state of OSGD with refresh must hold 'refresh', found {sorted(rest)}: load"
                    " the state of the same method with the same options"
                )
            self.kept.load_state_dict(rest.pop("refresh"))
        if self.normalize:
            self.constant.load_state_dict(rest)
        else:
            super().load_state_dict(rest)


def gradient_stats(
    losses: Losses,
    parameters: Parameters | None = None,
    *,
    group: Any = None,
    samples: float | None = None,
) -> Stats:
    """Norms, cosines and OSGD's loss weights, with ``.grad`` unchanged and the graph kept.

    Costs one backward pass per loss. A ``backward`` of the same losses may follow.

    Args:
        losses: as in ``Combiner.backward``.
        parameters: as in ``Combiner.backward``.
        group: as in ``Combiner``; the gradients are then those of the joined batch.
        samples: as in ``Combiner.backward``.

    Raises:
        ValueError, TypeError: as ``Combiner.backward``; NonFiniteLossError for a non-finite loss.

    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> stats = gradient_stats({"first": w[0], "all": w.sum()})
    >>> round(stats["first"].cosines["all"].item(), 6)
    0.707107
    """
    return OSGD(group=group).measure(losses, parameters, samples)
