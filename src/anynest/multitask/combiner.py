"""The thin shell round the rules: losses in, ``.grad`` out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import (
    check_choice,
    check_losses,
    check_parameters,
    check_touched,
    finite_losses,
    loss_values,
)
from .gradients import accumulate, task_rows
from .rows import Rows
from .stats import Stats

OnNonfinite = Literal["raise", "skip"]


@dataclass(frozen=True, eq=False)
class Combination:
    """What a rule makes of s rows: one tensor (or None) per parameter, and how it was found.

    ``weights`` [s], ``coefficients`` and ``gram`` [s, s] are as in ``Stats``, over these rows.
    """

    update: list[Tensor | None]
    weights: Tensor
    coefficients: Tensor | None = None
    gram: Tensor | None = None


class Combiner(ABC):
    """Turns several losses into one gradient; no optimizer, so any optimizer may follow.

    ``backward`` finds the rows (one gradient per task), ``combine`` makes one of them.
    """

    def __init__(self, on_nonfinite: OnNonfinite = "raise") -> None:
        self.on_nonfinite = check_choice("on_nonfinite", on_nonfinite, ("raise", "skip"))

    def backward(
        self,
        losses: Sequence[Tensor],
        parameters: Iterable[Tensor] | Tensor,
        *,
        retain_graph: bool = False,
        loss_scale: float | Tensor = 1.0,
    ) -> Stats:
        """Accumulate the combined gradient into ``.grad``, as ``loss.backward()`` does.

        Args:
            losses: scalar tensors, one per task, sharing a graph or not.
            parameters: the leaf tensors to give gradients to; a generator will do, duplicates count
                once, frozen ones are passed over, and those that no loss touches keep ``.grad`` as
                it was; at least one must be touched.
            retain_graph: keep the graph for a further pass; by default the last loss frees it.
            loss_scale: the factor that the losses carry, ``scaler.get_scale()`` under a GradScaler.
                Only methods that normalize need it: they would divide it out, and the scaler would
                divide once more.

        Returns:
            What was measured on the way (see ``Stats``).

        Raises:
            ValueError, TypeError: on bad losses or parameters, in one line, ``.grad`` untouched.
            NonFiniteLossError: a ValueError, on a loss that is NaN or infinite, unless
                ``on_nonfinite="skip"``. A non-finite *gradient* of a finite loss is passed on into
                ``.grad``, where a GradScaler finds it.

        Tensor hooks inside the graph run once per loss; hooks upon the accumulation into a
        parameter (``register_post_accumulate_grad_hook``) do not run, since nothing is accumulated
        by autograd itself. For the same reason gradients are not averaged by a
        DistributedDataParallel wrapper. ``WeightedSGD`` with reduction "mean" or "sum" is an
        ordinary backward pass, in which all of these work.
        """
        found = check_losses(losses)
        leaves = check_parameters(parameters)
        self.check_count(len(found))
        check_touched(found, leaves)
        values = loss_values(found)
        tasks = finite_losses(values, self.on_nonfinite)
        if not tasks:
            return Stats(values, torch.zeros_like(values), skipped=tuple(range(len(found))))
        kept = [found[i] for i in tasks]
        result = self._accumulate(kept, tasks, leaves, retain_graph, loss_scale)
        return stats_of(values, tasks, result)

    def _accumulate(
        self,
        losses: list[Tensor],
        tasks: list[int],
        parameters: list[Tensor],
        retain_graph: bool,
        loss_scale: float | Tensor,
    ) -> Combination:
        """``losses`` are those of ``tasks``, the finite ones."""
        rows = task_rows(losses, parameters, retain_graph=retain_graph, names=tasks)
        result = self.combine(rows, tasks, loss_scale)
        accumulate(parameters, result.update)
        return result

    @abstractmethod
    def combine(
        self,
        rows: Rows,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        """One gradient from rows. ``tasks`` are the loss indices of the rows (None: all)."""

    def check_count(self, count: int) -> None:  # noqa: B027 (nothing to check is a fair default)
        """Raise ValueError where this combiner was set up for another number of losses."""

    def settings(self) -> dict[str, Any]:
        """The options that ``repr`` shows."""
        return {}

    def __repr__(self) -> str:
        shown = self.settings()
        if self.on_nonfinite != "raise":
            shown = {**shown, "on_nonfinite": self.on_nonfinite}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers that a resumed run needs; empty for a combiner without memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, found {sorted(state)}: load the state of the"
                " same method with the same options"
            )


def stats_of(values_S: Tensor, tasks: list[int], result: Combination) -> Stats:
    """Spread what was found for the kept tasks over all of them."""
    count = len(values_S)
    if len(tasks) == count:
        return Stats(values_S, result.weights, result.coefficients, result.gram)

    def spread(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        index = torch.tensor(tasks, device=part.device)
        whole = torch.full((count, count), torch.nan, dtype=part.dtype, device=part.device)
        whole[index[:, None], index] = part
        return whole

    weights = result.weights.new_zeros(count)
    weights[torch.tensor(tasks, device=weights.device)] = result.weights
    skipped = tuple(i for i in range(count) if i not in tasks)
    return Stats(values_S, weights, spread(result.coefficients), spread(result.gram), skipped)
