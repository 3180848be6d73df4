"""Combiners: several losses in, one gradient into ``.grad``."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from .checks import (
    Losses,
    Names,
    Parameters,
    check_choice,
    check_gradients,
    check_group,
    check_loss_scale,
    check_micro_batch,
)
from .distributed.context import DistributedContext
from .gradients.backward import Buffer, LocalContext, MicroBatch, differentiate_each
from .gradients.diagonal import Metric
from .gradients.task_gradients import TaskGradients, index_on
from .methods.rules import consume, weighted_sum
from .stats import Combination, Stats

OnNonfinite = Literal["raise", "skip", "ignore"]
NONFINITE: tuple[OnNonfinite, ...] = ("raise", "skip", "ignore")


@dataclass(frozen=True, eq=False)
class OnePass:
    """A micro-batch's step as one ordinary backward pass of ``sum_i seeds[i] * losses[i]``.

    Attributes:
        seeds: one per loss, of its shape, dtype and device.
        loss_weights: [s] the same numbers in float64, for ``Stats``.
        refreshed: as in ``Stats``.
    """

    seeds: list[Tensor]
    loss_weights: Tensor
    refreshed: bool = True


@dataclass(eq=False)
class Step:
    """The micro-batches so far.

    Attributes:
        parameters: those of the first micro-batch.
        loss_scale: that of the first micro-batch.
        only_measure: whether ``.grad`` stays as it is.
        values: [S] the losses of each micro-batch.
        tasks: the losses that counted in some micro-batch.
        buffer: the gradients so far; None before the first finite loss.
        one_pass: whether the step consists of ordinary backward passes.
        weights: [S] the loss weights of each such pass.
        refreshed: as in ``Stats``.
    """

    parameters: list[Tensor]
    loss_scale: float | Tensor
    only_measure: bool = False
    values: list[Tensor] = field(default_factory=list)
    tasks: set[int] = field(default_factory=set)
    buffer: Buffer | None = None
    one_pass: bool = False
    weights: list[Tensor] = field(default_factory=list)
    refreshed: bool = True


class Combiner(ABC):
    r"""Combines the gradients of S losses into one, which any optimizer may then use.

    TorchJD calls this an aggregator with its backward pass, LibMTL a weighting. In the paper's
    terms, from :math:`g_i = \nabla L_i` a method computes

    .. math:: g = \sum_i w_i \, g_i

    with weights w that depend on the gradients (``Stats.loss_weights``). A subclass defines
    ``rule``, and ``one_pass`` if w is sometimes known before the gradients are.

    Args:
        on_nonfinite: what to do about a loss that is NaN or infinite. "raise": raise a
            NonFiniteLossError. "skip": leave the loss out of this step. "ignore": skip the check.
            No device synchronization, as CUDA graph capture requires; non-finite gradients reach
            ``.grad``, where a GradScaler detects them.
        group: a torch.distributed process group, such as ``torch.distributed.group.WORLD``, over
            which gradients are averaged; None for one process. All its ranks must take each step.
            The result is that of one process on the joined batch, equal on all ranks, and so are
            errors and skipped losses (see ``distributed.context``). Do not wrap the network in
            DistributedDataParallel.
    """

    # Whether each tensor is a block of its own in the gradients that ``rule`` receives.
    tensorwise: ClassVar[bool] = False

    def __init__(self, on_nonfinite: OnNonfinite = "raise", group: Any = None) -> None:
        self.on_nonfinite = check_choice("on_nonfinite", on_nonfinite, NONFINITE)
        self.group = check_group(group)
        self.context: LocalContext | DistributedContext = (
            LocalContext() if group is None else DistributedContext(group)
        )
        self._step: Step | None = None
        self._names: Names = None  # of the current step's losses

    def backward(
        self,
        losses: Losses,
        parameters: Parameters | None = None,
        *,
        retain_graph: bool = False,
        loss_scale: float | Tensor = 1.0,
        samples: float | None = None,
    ) -> Stats:
        """Accumulate the combined gradient into ``.grad``, as ``loss.backward()`` does.

        Args:
            losses: scalar tensors, one per task, with or without a common graph; or a dict of them
                by name, whose order is that of a list.
            parameters: the leaf tensors to compute gradients for, or parameter groups as an
                optimizer takes them (dicts with "params"). Generators and duplicates are allowed;
                frozen tensors are ignored; tensors that no loss touches keep their ``.grad``. At
                least one must be touched. None: the leaves of the losses' graphs that require a
                gradient, as in ``loss.backward()``. With a group all ranks must then build the same
                graph; under ``fully_shard`` pass the parameters.
            retain_graph: keep the graph for a further pass. By default each pass frees the part of
                it that no later loss reads.
            loss_scale: the factor that the losses carry, ``scaler.get_scale()`` under a GradScaler.
                Used by normalizing methods alone, which would otherwise divide it out.
            samples: how many samples these losses average over, if the ranks of a ``group`` differ
                in it (None: equal on all ranks). Unused without a group.

        Returns:
            The measurements of the step (see ``Stats``).

        Raises:
            ValueError, TypeError: for invalid losses or parameters, in one line, with ``.grad``
                unchanged; between ``accumulate`` and ``combine``.
            NonFiniteLossError: a ValueError, for a loss that is NaN or infinite, if
                ``on_nonfinite`` is "raise". A non-finite *gradient* of a finite loss reaches
                ``.grad``, where a GradScaler detects it.

        Note:
            Tensor hooks inside the graph run once per loss. Hooks on the accumulation into a
            parameter (``register_post_accumulate_grad_hook``, those of DistributedDataParallel) do
            not run, since autograd itself accumulates nothing. ``WeightedSGD`` with reduction
            "mean" or "sum" and no group is an ordinary backward pass, in which all hooks run.

            Activation checkpointing must be non-reentrant (``use_reentrant=False``). Its segments
            are recomputed in each of the S passes, so that a step runs them S + 1 times, and a
            BatchNorm inside updates its running statistics as often.

        >>> from anynest import OSGD
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> losses = {"seg": w.sum(), "depth": w[0] * 2}
        >>> stats = OSGD(priority=["depth", "seg"]).backward(losses)
        >>> w.grad, stats["depth"].loss_weight.item()
        (tensor([2., 1.]), 0.5)
        """
        self._require_no_step("backward")
        scale = check_loss_scale(loss_scale)
        batch = self._check(losses, parameters, samples)
        step = Step(batch.parameters, scale)
        self._differentiate(step, batch, retain_graph, is_whole=True)
        return self._combine(step)

    def accumulate(
        self,
        losses: Losses,
        parameters: Parameters | None = None,
        *,
        loss_scale: float | Tensor = 1.0,
        samples: float | None = None,
    ) -> None:
        """Add one micro-batch's gradients to those kept for ``combine``; ``.grad`` is unchanged.

        The tasks' gradients add up as ``.grad`` does under ``loss.backward()``: divide each loss by
        the number of micro-batches for the mean. The projection, which is not linear, is then of
        the whole batch's gradients::

            for x, y in micro_batches:
                losses = [criterion(out, y) / len(micro_batches) for out in model(x)]
                combiner.accumulate(losses, model.parameters())
            stats = combiner.combine()

        Arguments and errors are those of ``backward``; all micro-batches of a step must have the
        same losses and parameters in the same order. Each pass frees the part of the graph that no
        later loss reads, so that none of it is left. Under ``on_nonfinite="skip"`` a loss is left
        out of the micro-batches in which it is not finite. Invalid arguments leave what was
        accumulated unchanged; an error during a backward pass discards it.
        """
        scale = check_loss_scale(loss_scale)
        batch = self._check(losses, parameters, samples)
        step, self._step = self._step or Step(batch.parameters, scale), None
        self._differentiate(step, batch, retain_graph=False, is_whole=False)
        self._step = step

    def combine(self) -> Stats:
        """Combine what was accumulated into ``.grad``, and discard it.

        Returns:
            ``Stats`` of the step, whose losses are summed over the micro-batches.

        Raises:
            ValueError: if nothing was accumulated.
        """
        step, self._step = self._step, None
        if step is None:
            raise ValueError("combine needs gradients, found none: call accumulate() first")
        return self._combine(step)

    def discard(self) -> None:
        """Discard what was accumulated."""
        self._step = None

    def measure(
        self, losses: Losses, parameters: Parameters | None = None, samples: float | None = None
    ) -> Stats:
        """What ``backward`` would return; ``.grad`` and the method's state stay as they are, and so
        does the graph. One pass per loss.
        """
        self._require_no_step("measure")
        twin = self.twin()
        batch = twin._check(losses, parameters, samples)
        step = Step(batch.parameters, 1.0, only_measure=True)
        twin._differentiate(step, batch, retain_graph=True, is_whole=True)
        return twin._combine(step)

    def twin(self) -> Self:
        """A copy whose steps leave this one's state as it is; extended where a step changes more
        than attributes.
        """
        return copy.copy(self)

    def _check(
        self, losses: Losses, parameters: Parameters | None, samples: float | None
    ) -> MicroBatch:
        """Validate the arguments, on all ranks alike."""

        def accepts(losses: list[Tensor], parameters: list[Tensor], names: Names) -> None:
            self.check_count(len(losses), names)
            if self._step is not None:
                before, count = self._step.parameters, len(self._step.values[0])
                check_micro_batch(losses, parameters, count, before, names, self._names)

        batch = self.context.check(losses, parameters, samples, self.on_nonfinite, accepts)
        self._names = batch.names
        return batch

    def _differentiate(
        self, step: Step, batch: MicroBatch, retain_graph: bool, *, is_whole: bool
    ) -> None:
        """Add a micro-batch's gradients to the step; ``is_whole``: it is the only micro-batch."""
        step.values.append(batch.values)
        step.tasks.update(batch.tasks)
        losses = [batch.losses[i] for i in batch.tasks]
        if not losses:
            return
        if step.buffer is None:
            one_pass = self.begin(batch.parameters, batch.tasks)
            step.one_pass = one_pass and not step.only_measure
            step.buffer = self.context.buffer(
                batch.parameters, step.one_pass, is_whole, self.tensorwise
            )
        if not step.one_pass:
            differentiate_each(
                step.buffer,
                list(zip(batch.tasks, losses, strict=True)),
                batch.graphs,
                batch.parameters,
                batch.differentiate,
                retain_graph=retain_graph,
            )
            return
        one = self.one_pass(losses, batch.tasks)
        if is_whole and self.group is None:
            torch.autograd.backward(losses, one.seeds, retain_graph, inputs=batch.parameters)
        else:
            grads = batch.differentiate(losses, one.seeds, batch.parameters, retain_graph)
            step.buffer.add(0, check_gradients(0, grads))
        weights = one.loss_weights
        if len(losses) < len(batch.losses):
            index = index_on(tuple(batch.tasks), weights.device)
            weights = weights.new_zeros(len(batch.losses)).index_copy(0, index, weights)
        step.weights.append(weights)
        step.refreshed = one.refreshed

    def _combine(self, step: Step) -> Stats:
        """Add the rule's result to ``.grad``; without any finite loss, nothing."""
        tasks = sorted(step.tasks)
        values = sum(step.values[1:], start=step.values[0])
        if step.buffer is None:
            values = self.context.total(values)
            return Stats.of(Combination(values.new_zeros(0)), values, tasks, names=self._names)
        metric = None if step.one_pass else self.metric_of(step.parameters)
        gradients, values = self.context.collect(step.buffer, values, step.one_pass, metric)
        step.buffer = None  # what it held is the gradients' now
        if step.one_pass:
            weights = torch.stack(step.weights).mean(0)
            if len(tasks) < len(values):
                weights = weights.index_select(0, index_on(tuple(tasks), weights.device))
            found = Combination(weights, refreshed=step.refreshed)
        else:
            found = self.rule(gradients, tasks, step.loss_scale)
        if not step.only_measure:
            if step.one_pass:
                update = weighted_sum(gradients, gradients.new(gradients.num_tasks) + 1)
            else:
                update = consume(gradients, found.loss_weights, found.importances)
            accumulate(step.parameters, self.context.gather(update))
        sent = self.context.take_sent()
        return Stats.of(found, values, tasks, sent, self._names)

    def metric_of(self, parameters: Sequence[Tensor]) -> Metric | None:
        """The metric of the dot products that ``rule`` receives; None for the ordinary one."""
        return None

    @abstractmethod
    def rule(
        self,
        gradients: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        """The weights of the gradients; ``tasks`` are their loss indices (None: all losses)."""

    def takes_one_pass(self, tasks: Sequence[int]) -> bool:
        """Whether the next step, with these losses, is one ordinary backward pass."""
        return False

    def begin(self, parameters: Sequence[Tensor], tasks: Sequence[int]) -> bool:
        """Called once per step, before its first pass; returns ``takes_one_pass(tasks)``."""
        return self.takes_one_pass(tasks)

    def one_pass(self, losses: list[Tensor], tasks: Sequence[int]) -> OnePass:
        """The weights of that pass; called only in steps for which ``begin`` returned True."""
        raise NotImplementedError(f"{type(self).__name__} has no one-pass step")

    def check_count(self, count: int, names: Names) -> None:  # noqa: B027 (most accept any)
        """Raise ValueError if this combiner was set up for other losses."""

    def _require_no_step(self, name: str) -> None:
        if self._step is not None:
            raise ValueError(
                f"{name} must not come between accumulate and combine: call combine() first, or"
                " discard() what was accumulated"
            )

    def __repr__(self) -> str:
        """All arguments, as a constructor call; a group by its number of ranks."""
        names = [name for name in inspect.signature(type(self)).parameters if name != "group"]
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        if self.group is not None:
            shown.append(f"group=<{self.group.size()} ranks>")
        return f"{type(self).__name__}({', '.join(shown)})"

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers that a resumed run needs; empty for a combiner without state."""
        self._require_no_step("state_dict")
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, found {sorted(state)}: load the state of"
                " the same method with the same options"
            )


@torch.no_grad()
def accumulate(parameters: Sequence[Tensor], update: Sequence[Tensor | None]) -> None:
    """Add ``update`` to ``.grad`` as ``loss.backward()`` does; None leaves ``.grad`` unchanged."""
    sums: list[Tensor] = []
    terms: list[Tensor] = []
    for parameter, term in zip(parameters, update, strict=True):
        if term is None:
            continue
        if parameter.grad is None:
            parameter.grad = term
        elif parameter.grad.layout != torch.strided:
            parameter.grad = term + parameter.grad
        else:
            sums.append(parameter.grad)
            terms.append(term)
    if sums:
        torch._foreach_add_(sums, terms)
