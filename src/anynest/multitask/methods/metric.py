r"""The metric of an optimizer's step, in which OSGD's promise holds for that step.

An adaptive optimizer moves the parameters by :math:`-D u`, where u is the combined gradient and D
is diagonal. To first order the first task's loss changes by :math:`-\langle g_1, D u \rangle`. With
dot products :math:`a^T D b`, OSGD's u fulfils

.. math:: \langle g_1, D u \rangle = \langle g_1, D g_1 \rangle

D is read from the optimizer's state before the step. For Adam, with second moments v after t steps
and the parameter group's learning rate r,

.. math:: D = \frac{r}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

A common factor of D changes nothing, so rates count relative to the largest. Not in D: what the step
itself adds to v, and the average of earlier gradients (momentum).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from ..gradients.diagonal import Diagonal, Metric, Root
from ..gradients.task_gradients import wide_dtype

Number = float | Tensor
MetricSource = Optimizer | Callable[[Tensor], Tensor | None]
# v, the mean whose square is subtracted from it, and c of D = r / (sqrt(v / c) + eps)
Moments = tuple[Tensor, Tensor | None, Number]


class OptimizerMetric:
    """D of an optimizer's next step.

    Args:
        optimizer: Adam, AdamW, NAdam, RMSprop or Adagrad, in any of torch's implementations; or
            SGD, whose D is the learning rate of each parameter group.

    Raises:
        TypeError: for any other optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._moments = next((m for kinds, m in KINDS if isinstance(optimizer, kinds)), None)
        if self._moments is None and not isinstance(optimizer, SGD):
            raise TypeError(
                "metric must be Adam, AdamW, NAdam, RMSprop, Adagrad or SGD, or a function, found"
                f" {type(optimizer).__name__}: pass a function from a parameter to the factors that"
                " the optimizer scales its gradient by"
            )

    def check(self, parameters: Sequence[Tensor]) -> None:
        """ValueError for a parameter that the optimizer does not have."""
        known = self._groups()
        for p, parameter in enumerate(parameters):
            if id(parameter) not in known:
                raise ValueError(
                    f"parameters must be those of the metric's optimizer, found one of shape"
                    f" {tuple(parameter.shape)} at position {p} that is not: pass"
                    " optimizer.param_groups"
                )

    def of(self, parameters: Sequence[Tensor]) -> Metric | None:
        """D of each parameter, None for one without a state; None if D is the same everywhere."""
        groups, rates = self._groups(), _rates(self.optimizer.param_groups)
        if self._moments is None and all(map(_is_one, rates)):
            return None
        roots: dict[Any, Root] = {}  # one function for parameters of equal numbers
        found: list[Diagonal | None] = []
        for parameter in parameters:
            number = groups[id(parameter)]
            rate, group = rates[number], self.optimizer.param_groups[number]
            if self._moments is None:
                root = roots.setdefault(number, _constant(rate))
                found.append(Diagonal((parameter.detach(),), root))
                continue
            state = self.optimizer.state.get(parameter, {})
            moments = self._moments(state, group)
            if moments is None:
                found.append(None)
                continue
            second, mean, correction = moments
            key = (number, correction)
            root = roots.setdefault(key, _inverse_root(rate, correction, group["eps"]))
            found.append(Diagonal((second,) if mean is None else (second, mean), root))
        return found

    def _groups(self) -> dict[int, int]:
        """The number of each parameter's group, by id."""
        groups = enumerate(self.optimizer.param_groups)
        return {id(p): number for number, group in groups for p in group["params"]}

    def __repr__(self) -> str:
        return type(self.optimizer).__name__


class FunctionMetric:
    """D from a function of a parameter; it may return None for ones."""

    def __init__(self, function: Callable[[Tensor], Tensor | None]) -> None:
        self.function = function

    def check(self, parameters: Sequence[Tensor]) -> None:
        """Any parameter is accepted."""

    def of(self, parameters: Sequence[Tensor]) -> Metric | None:
        """D of each parameter; None if it is 1 everywhere.

        Raises:
            TypeError, ValueError: for what is no tensor of the parameter's shape, without negative
                entries (which are looked for on a CPU only).
        """
        given = [_checked(parameter, self.function(parameter)) for parameter in parameters]
        if all(diagonal is None for diagonal in given):
            return None
        ones = _constant(1.0)
        return [
            Diagonal((parameter.detach(),), ones)
            if diagonal is None
            else Diagonal((diagonal.detach(),), torch.sqrt_)
            for parameter, diagonal in zip(parameters, given, strict=True)
        ]

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def make_metric(source: MetricSource | None) -> OptimizerMetric | FunctionMetric | None:
    """The metric of OSGD's argument."""
    if source is None:
        return None
    if isinstance(source, Optimizer):
        return OptimizerMetric(source)
    if isinstance(source, type) or not callable(source):
        name = source.__name__ if isinstance(source, type) else type(source).__name__
        raise TypeError(
            f"metric must be an optimizer or a function of a parameter, found {name}: pass the"
            " optimizer that takes the step"
        )
    return FunctionMetric(source)


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Moments | None:
    key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    if key not in state:
        return None
    return state[key], None, _correction(group["betas"][1], state["step"])


def _rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Moments | None:
    if "square_avg" not in state:
        return None
    return state["square_avg"], state["grad_avg"] if group["centered"] else None, 1.0


def _adagrad(state: Mapping[str, Any], group: Mapping[str, Any]) -> Moments | None:
    # the state is made with the optimizer; lr_decay is a factor common to all parameters
    return (state["sum"], None, 1.0) if "sum" in state and _number(state["step"]) != 0 else None


KINDS: tuple[tuple[Any, Callable[..., Moments | None]], ...] = (
    ((Adam, AdamW, NAdam), _adam),
    (RMSprop, _rmsprop),
    (Adagrad, _adagrad),
)


def _number(number: Number) -> Number:
    """A float; a tensor on a GPU as it is, which reading would synchronize with."""
    if isinstance(number, Tensor) and number.device.type != "cpu":
        wide: Tensor = number.to(wide_dtype(number.device))
        return wide
    return float(number)


def _correction(beta: Number, step: Number) -> Number:
    """``1 - beta^step``, above 0 (a fused optimizer's first step may have been skipped)."""
    correction: Number = 1 - _number(beta) ** _number(step)
    tiny = torch.finfo(torch.float32).tiny
    if isinstance(correction, Tensor):
        return correction.clamp(min=tiny)
    return max(correction, tiny)


def _rates(groups: Sequence[Mapping[str, Any]]) -> list[Number]:
    """Learning rates relative to the largest; 1 if all are equal, also to 0."""
    rates = [_number(group["lr"]) for group in groups]
    if len(rates) == 1:
        return [1.0]
    if any(isinstance(rate, Tensor) for rate in rates):
        return rates
    largest = max(rates)
    return [rate / largest if largest > 0 else 1.0 for rate in rates]


def _is_one(rate: Number) -> bool:
    return not isinstance(rate, Tensor) and rate == 1


def _constant(rate: Number) -> Root:
    return lambda like: like.fill_(rate**0.5)


def _inverse_root(rate: Number, correction: Number, eps: Number) -> Root:
    """``(sqrt(v / correction) + eps)^(-1/2) rate^(1/2)``, v less the square of the mean."""

    def function(second: Tensor, mean: Tensor | None = None) -> Tensor:
        if mean is not None:
            second.addcmul_(mean, mean, value=-1).clamp_(min=0)
        if not _is_one(correction):
            second.div_(correction)
        second.sqrt_().add_(eps).rsqrt_()
        return second if _is_one(rate) else second.mul_(rate**0.5)

    return function


def _checked(parameter: Tensor, diagonal: object) -> Tensor | None:
    """A function's result; None for ones, which on a CPU are recognized."""
    if diagonal is None:
        return None
    shape = tuple(parameter.shape)
    if not isinstance(diagonal, Tensor):
        raise TypeError(
            f"metric must return a tensor or None, found {type(diagonal).__name__} for a parameter"
            f" of shape {shape}: return the factors that scale its gradient"
        )
    if diagonal.shape != parameter.shape:
        raise ValueError(
            f"metric must return a factor for each entry, found shape {tuple(diagonal.shape)} for a"
            f" parameter of shape {shape}: expand it"
        )
    if diagonal.device.type != "cpu" or diagonal.numel() == 0:
        return diagonal
    low, high = map(float, torch.aminmax(diagonal.detach()))
    if not low >= 0:
        raise ValueError(
            f"metric must be at least 0, found {low} for a parameter of shape {shape}: return how"
            " far a step along the gradient moves each entry"
        )
    return None if low == high == 1 else diagonal
