"""The thin shell round the rules: losses in, ``.grad`` out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import (
    Parameters,
    check_choice,
    check_gradients,
    check_group,
    check_loss_scale,
    check_losses,
    check_micro_batch,
    check_parameters,
    check_samples,
    finite_losses,
    loss_values,
    split_groups,
)
from .distributed.context import Ranks
from .distributed.dtensor import require_plain
from .distributed.exchange import SharedFilling
from .distributed.wrappers import check_wrappers
from .gradients.backward import accumulate, fill, gradient
from .gradients.buffer import Filling, Pattern
from .gradients.combination import Combination, OnePass, Pending, stats_of
from .gradients.graph import check_checkpointing, check_touched
from .gradients.micro_batch import Given
from .gradients.task_gradients import TaskGradients
from .stats import Stats

OnNonfinite = Literal["raise", "skip", "ignore"]
NONFINITE: tuple[OnNonfinite, ...] = ("raise", "skip", "ignore")


class Combiner(ABC):
    """Turns several losses into one gradient; no optimizer, so any optimizer may follow.

    ``accumulate`` finds the rows (one gradient per task), ``combine`` makes one of them by the
    ``rule``; ``backward`` is both at once.

    Args:
        on_nonfinite: what a loss that is NaN or infinite does. "raise" a NonFiniteLossError;
            "skip" leaves it out of this step; "ignore" does not look: nothing waits for the device,
            as the capture of a CUDA graph demands, and what is not finite goes on into ``.grad``,
            where a GradScaler finds it.
        group: the torch.distributed process group over which rows are reduced, as
            ``torch.distributed.group.WORLD`` is; None for one process. Its ranks must all take each
            step. The result is that of one process on the joined batch, and the same everywhere;
            errors and skips are of all ranks together (see ``distributed``).
    """

    def __init__(self, on_nonfinite: OnNonfinite = "raise", group: Any = None) -> None:
        self.on_nonfinite = check_choice("on_nonfinite", on_nonfinite, NONFINITE)
        self.group = check_group(group)
        self.ranks = None if self.group is None else Ranks(self.group)
        self._pattern: Pattern | None = None
        self._is_walked = False  # whether a graph has been looked at as a whole
        self._pending: Pending | None = None

    def backward(
        self,
        losses: Sequence[Tensor],
        parameters: Parameters,
        *,
        retain_graph: bool = False,
        loss_scale: float | Tensor = 1.0,
        samples: float | None = None,
    ) -> Stats:
        """Accumulate the combined gradient into ``.grad``, as ``loss.backward()`` does.

        Args:
            losses: scalar tensors, one per task, sharing a graph or not.
            parameters: the leaf tensors to give gradients to, or parameter groups as an optimizer
                takes them (dicts with "params"); a generator will do, duplicates count once, frozen
                ones are passed over, and those that no loss touches keep ``.grad`` as it was; at
                least one must be touched.
            retain_graph: keep the graph for a further pass; by default the last loss frees it.
            loss_scale: the factor that the losses carry, ``scaler.get_scale()`` under a GradScaler.
                Only methods that normalize need it: they would divide it out, and the scaler would
                divide once more.
            samples: how many samples these losses average over, where ranks of a ``group`` differ
                in it (None: all alike). Without a group it changes nothing.

        Returns:
            What was measured on the way (see ``Stats``).

        Raises:
            ValueError, TypeError: on bad losses or parameters, in one line, ``.grad`` untouched;
                between ``accumulate`` and ``combine``.
            NonFiniteLossError: a ValueError, on a loss that is NaN or infinite, if ``on_nonfinite``
                is "raise". A non-finite *gradient* of a finite loss is passed on into ``.grad``,
                where a GradScaler finds it.

        Tensor hooks inside the graph run once per loss; hooks upon the accumulation into a
        parameter (``register_post_accumulate_grad_hook``) do not run, since nothing is accumulated
        by autograd itself. For the same reason a DistributedDataParallel wrapper would average
        nothing, and is refused: give the combiner the ``group`` instead. ``WeightedSGD`` with
        reduction "mean" or "sum" and no group is an ordinary backward pass, in which all work.
        Activation checkpointing works with ``use_reentrant=False``; the first step looks for the
        other kind and refuses it.
        """
        if self._pending is not None:
            raise ValueError(
                "backward must not come between accumulate and combine: call combine() first, or"
                " discard() what was accumulated"
            )
        self._take(losses, parameters, retain_graph, loss_scale, samples, into_grad=True)
        return self.combine()

    def accumulate(
        self,
        losses: Sequence[Tensor],
        parameters: Parameters,
        *,
        loss_scale: float | Tensor = 1.0,
        samples: float | None = None,
    ) -> None:
        """Add one micro-batch's rows to those kept for ``combine``; ``.grad`` stays as it is.

        TaskGradients add up as ``.grad`` does under ``loss.backward()``: divide each loss by the number of
        micro-batches for the mean. So the projection, which is not linear, sees the gradients of
        the whole batch::

            for x, y in micro_batches:
                losses = [criterion(out, y) / len(micro_batches) for out in model(x)]
                combiner.accumulate(losses, model.parameters())
            stats = combiner.combine()

        Arguments and errors are those of ``backward``; losses and parameters must be the same in
        number and order in all micro-batches of a step. The graph is freed. Under
        ``on_nonfinite="skip"`` a loss is left out of the micro-batch in which it is not finite.
        Bad input leaves the rows kept so far; an error in the midst of a pass drops them.
        """
        self._take(losses, parameters, False, loss_scale, samples, into_grad=False)

    def combine(self) -> Stats:
        """One projection of the accumulated rows, into ``.grad``; the rows are dropped.

        Returns ``Stats``, in which the losses are summed over the micro-batches.
        Raises ValueError if nothing was accumulated.
        """
        step, self._pending = self._pending, None
        if step is None:
            raise ValueError("combine needs accumulated rows, found none: call accumulate() first")
        if not step.tasks:
            values = step.values if self.ranks is None else self.ranks.total([step.values])[0]
            nothing = torch.zeros_like(values)
            return Stats(values, nothing, skipped=tuple(range(len(values))))
        tasks = sorted(step.tasks)
        result, values = self._result(step, tasks)
        result = self.finish(tasks, result, step.single)
        update = result.update
        if update and self.ranks is not None:
            update = self.ranks.gather(update)
        if update:
            accumulate(step.leaves, update)
        sent = 0 if self.ranks is None else self.ranks.link.take_sent()
        return stats_of(values, tasks, result, sent)

    def _result(self, step: Pending, tasks: list[int]) -> tuple[Combination, Tensor]:
        """What the rule makes of a step's rows; [S] the losses."""
        filling, values = step.filling, step.values
        if self.ranks is not None:
            filling = self.ranks.share(filling, step.single)
        if not step.single:
            rows = filling.settle()
            if self.ranks is not None:
                rows, values = self.ranks.whole(rows, values)
            return self.rule(rows, tasks, step.loss_scale), values
        if self.ranks is not None:
            values = self.ranks.total([values])[0]
        # without rows, the pass went into .grad itself
        update = filling.settle().tensors()[0] if filling.tasks else []
        kept = step.weights
        if len(tasks) < len(kept):
            kept = kept[torch.tensor(tasks, device=kept.device)]
        return Combination(update, kept), values

    def discard(self) -> None:
        """Drop what was accumulated."""
        self._pending = None

    def _take(
        self,
        losses: Sequence[Tensor],
        parameters: Parameters,
        retain_graph: bool,
        loss_scale: float | Tensor,
        samples: float | None,
        into_grad: bool,
    ) -> None:
        """One micro-batch: check, differentiate, add. ``into_grad``: it is the only one."""
        check_loss_scale(loss_scale)
        tensors, groups = split_groups(parameters)
        given = self._given(losses, tensors, samples)
        leaves, values, tasks = given.leaves, given.values, given.tasks
        step = self._pending
        if step is None:
            zeros = torch.zeros_like(values)
            like = leaves if self.ranks is None else self.ranks.like(leaves)
            filling = Filling(like, tasks, self._pattern, self.scopes_of(leaves, groups))
            step = Pending(leaves, filling, loss_scale, zeros, zeros)
        kept = [given.losses[i] for i in tasks]
        if tasks and not step.tasks:
            self.meet(leaves)
            step.single = self.takes_one_pass(tasks)
            if self.ranks is not None and self.ranks.shards is None and into_grad:
                step.filling = SharedFilling(self.ranks, tasks, step.single, step.filling.scopes)
        self._pending = None  # an error in a pass leaves nothing half done
        if tasks and step.single:
            self._pass(step, given, self.single(kept, tasks), retain_graph, into_grad)
        elif tasks:
            if self.ranks is None and self._pattern is None:
                check_wrappers(leaves)
            fill(step.filling, kept, leaves, tasks, given.differentiate, retain_graph=retain_graph)
            if isinstance(step.filling, Filling):
                step.filling.settle()
                self._pattern = step.filling.pattern()
        step.values = values if step.micro_batches == 0 else step.values + values
        step.micro_batches += 1
        step.tasks.update(tasks)
        self._pending = step

    def _given(
        self,
        losses: Sequence[Tensor],
        parameters: Sequence[Tensor],
        samples: float | None,
    ) -> Given:
        """One micro-batch, checked."""
        if self.ranks is not None:
            return self.ranks.take(losses, parameters, samples, self.on_nonfinite, self._suits)
        found = check_losses(losses)
        leaves = check_parameters(parameters)
        require_plain(leaves)
        check_samples(samples)
        self._suits(found, leaves)
        check_touched(found, leaves)
        values = loss_values(found)
        return Given(found, leaves, values, finite_losses(values, self.on_nonfinite), gradient)

    def _suits(self, losses: list[Tensor], leaves: list[Tensor]) -> None:
        """ValueError where this combiner, or the step under way, cannot take these."""
        self.check_count(len(losses))
        step = self._pending
        if step is not None:
            check_micro_batch(losses, leaves, len(step.values), step.leaves)
        if not self._is_walked:
            check_checkpointing(losses)
            self._is_walked = True

    def _pass(
        self, step: Pending, given: Given, one: OnePass, retain_graph: bool, into_grad: bool
    ) -> None:
        """One ordinary backward pass, into ``.grad`` at once where nothing is to be added."""
        tasks = given.tasks
        if into_grad and self.ranks is None:
            torch.autograd.backward(
                one.outputs, one.seeds, inputs=step.leaves, retain_graph=retain_graph
            )
        else:
            grads = given.differentiate(one.outputs, one.seeds, step.leaves, retain_graph)
            check_gradients(0, grads)
            step.filling.add(0, grads)
        weights = one.weights
        if len(tasks) < len(step.weights):
            weights = weights.new_zeros(len(step.weights))
            weights[torch.tensor(tasks, device=weights.device)] = one.weights
        if step.micro_batches == 0:
            step.weights = weights
        else:
            step.weights = step.weights + (weights - step.weights) / (step.micro_batches + 1)

    @abstractmethod
    def rule(
        self,
        rows: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        """One gradient from rows. ``tasks`` are the loss indices of the rows (None: all)."""

    def scopes_of(
        self, leaves: Sequence[Tensor], groups: dict[int, int] | None
    ) -> tuple[int, ...] | None:
        """The scope of each leaf for ``TaskGradients``; ``groups`` are the parameter groups by tensor id."""
        return None

    def meet(self, leaves: Sequence[Tensor]) -> None:  # noqa: B027 (most need not know)
        """The parameters of the step that begins."""

    def takes_one_pass(self, tasks: Sequence[int]) -> bool:
        """Whether the step that begins with these losses is one ordinary backward pass."""
        return False

    def single(self, losses: list[Tensor], tasks: Sequence[int]) -> OnePass:
        """That pass; asked for only where ``is_single`` says so."""
        raise TypeError(f"{type(self).__name__} has no step of one pass")

    def finish(self, tasks: Sequence[int], result: Combination, single: bool) -> Combination:
        """The step is done: remember, or add to the result, what the combiner wishes."""
        return result

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

    def require_whole_step(self) -> None:
        """ValueError between ``accumulate`` and ``combine``, whose rows no state holds."""
        if self._pending is not None:
            raise ValueError(
                "state_dict must not come between accumulate and combine: call combine() first"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers that a resumed run needs; empty for a combiner without memory."""
        self.require_whole_step()
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, found {sorted(state)}: load the state of the"
                " same method with the same options"
            )
