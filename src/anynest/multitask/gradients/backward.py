"""The tasks' gradients: one backward pass per loss, each through its own part of the graph.

Autograd's graph is inspected before the passes, so that each frees what no later loss reads.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from ..checks import (
    Losses,
    Names,
    Parameters,
    check_gradients,
    check_losses,
    check_names,
    check_parameters,
    check_samples,
    finite_losses,
    loss_values,
    require_no_shards,
)
from .diagonal import Metric
from .task_gradients import Grads, TaskGradients

# (outputs, seeds, parameters, retain_graph) -> gradients
Differentiate = Callable[
    [Sequence[Tensor], Sequence[Tensor | None], Sequence[Tensor], bool],
    tuple[Tensor | None, ...],
]
# raises an error for losses or parameters that the combiner cannot take
Accepts = Callable[[list[Tensor], list[Tensor], Names], None]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One micro-batch after all checks.

    Attributes:
        losses: all S losses.
        parameters: the leaf tensors to differentiate for.
        values: [S] the losses' values; with a group this rank's share of the joined batch's, so
            that they add up over ranks.
        tasks: the losses that count, by number.
        graphs: for each loss, what its backward pass may free.
        differentiate: takes one backward pass.
        names: of the losses, None where they were passed as a list.
    """

    losses: list[Tensor]
    parameters: list[Tensor]
    values: Tensor
    tasks: list[int]
    graphs: "list[LossGraph]"
    differentiate: Differentiate
    names: Names = None


class Buffer(Protocol):
    """Collects the tasks' gradients as the backward passes produce them."""

    def add(self, task: int, grads: Grads) -> None:
        """Add one task's gradients to those that it has so far (None: not touched)."""

    def finalize(self, metric: Metric | None = None) -> TaskGradients:
        """The gradients of all tasks that were added, in the order of their numbers."""


class GradientBuffer:
    """The tasks' gradients in the memory of this process.

    Args:
        like: the tensors that the gradients belong to.
        tensorwise: as in ``TaskGradients.stack``.
        sizes: as in ``TaskGradients.stack``.
    """

    def __init__(
        self,
        like: Sequence[Tensor],
        tensorwise: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.like, self.tensorwise, self.sizes = like, tensorwise, sizes
        self._grads: dict[int, list[Tensor | None]] = {}

    @property
    def tasks(self) -> list[int]:
        """The tasks that have a gradient, in order."""
        return sorted(self._grads)

    def add(self, task: int, grads: Grads) -> None:
        """Add to a task's gradients; new sums are made, as autograd's tensors may share memory."""
        if task not in self._grads:
            self._grads[task] = list(grads)
            return
        sums = self._grads[task]
        for p, grad in enumerate(grads):
            if grad is not None:
                before = sums[p]
                sums[p] = grad if before is None else before + grad

    def finalize(self, metric: Metric | None = None) -> TaskGradients:
        """The gradients in the order of ``tasks``; of no task and no tensor if none were added."""
        if not self._grads:
            return TaskGradients(0, (), (None,) * len(self.like), ())
        grads = [self._grads[task] for task in self.tasks]
        self._grads = {}
        return TaskGradients.stack(grads, self.like, self.tensorwise, metric, self.sizes)


class LocalContext:
    """One process; ``distributed.context`` has the same methods for a group of processes."""

    def check(
        self,
        losses: Losses,
        parameters: Parameters | None,
        samples: float | None,
        on_nonfinite: str,
        accepts: Accepts,
    ) -> MicroBatch:
        """Check one micro-batch; ``accepts`` raises if the combiner cannot take it."""
        found, names = check_losses(losses), check_names(losses)
        leaves = graph_leaves(found) if parameters is None else check_parameters(parameters)
        require_no_shards(leaves)
        check_samples(samples)
        accepts(found, leaves, names)
        graphs = inspect_graphs(found, leaves)
        values = loss_values(found)
        tasks = finite_losses(values, on_nonfinite, names)
        return MicroBatch(found, leaves, values, tasks, graphs, gradient, names)

    def buffer(
        self, parameters: Sequence[Tensor], one_pass: bool, is_whole: bool, tensorwise: bool
    ) -> Buffer:
        """A buffer for a step's gradients; ``is_whole``: the step has this one micro-batch."""
        return GradientBuffer(parameters, tensorwise)

    def collect(
        self, buffer: Buffer, values_S: Tensor, one_pass: bool, metric: Metric | None = None
    ) -> tuple[TaskGradients, Tensor]:
        """The gradients and losses of the whole batch."""
        return buffer.finalize(metric), values_S

    def total(self, values_S: Tensor) -> Tensor:
        """[S] the losses of the whole batch, for a step without gradients."""
        return values_S

    def gather(self, update: list[Tensor | None]) -> list[Tensor | None]:
        """The whole update."""
        return update

    def take_sent(self) -> int:
        """Bytes sent by this rank since the last call."""
        return 0


def task_gradients(
    losses: Sequence[Tensor], parameters: Sequence[Tensor], *, retain_graph: bool = False
) -> TaskGradients:
    """One ``torch.autograd.grad`` per loss; each pass walks only what its loss reads.

    Args:
        losses: scalar tensors.
        parameters: leaf tensors; a loss has no gradient in those that it does not touch.
        retain_graph: keep the graph for further passes.

    Raises:
        ValueError: for a sparse or complex gradient, or if no loss touches a parameter.
    """
    buffer = GradientBuffer(parameters)
    graphs = inspect_graphs(losses, parameters)
    differentiate_each(
        buffer, list(enumerate(losses)), graphs, parameters, gradient, retain_graph=retain_graph
    )
    return buffer.finalize()


def differentiate_each(
    buffer: Buffer,
    losses: Sequence[tuple[int, Tensor]],
    graphs: "Sequence[LossGraph]",
    parameters: Sequence[Tensor],
    differentiate: Differentiate,
    *,
    retain_graph: bool,
) -> None:
    """Add the gradient of each ``(task, loss)`` to ``buffer``, one backward pass per loss.

    Unless ``retain_graph``, each pass frees the part of the graph that no later loss reads.
    """
    for number, (task, loss) in enumerate(losses, 1):
        graph = graphs[task]
        keep = retain_graph or (graph.shared and number < len(losses))
        # Unreferenced here, so freed before the next backward pass.
        buffer.add(task, check_gradients(task, differentiate([loss], [None], parameters, keep)))
        if keep and not retain_graph:
            graph.free()


def gradient(
    outputs: Sequence[Tensor],
    seeds: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    retain_graph: bool,
) -> tuple[Tensor | None, ...]:
    """The gradient of ``sum_i seeds[i] * outputs[i]`` (None: 1); None where nothing is touched."""
    try:
        return torch.autograd.grad(
            outputs, parameters, grad_outputs=seeds, retain_graph=retain_graph, allow_unused=True
        )
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise ValueError(
            "a compiled network must keep its graph for one backward pass per loss, found one that"
            " frees it in the first: compile it by anynest.multitask.compile_for_tasks(network)"
        ) from error


class LossGraph(NamedTuple):
    """The part of autograd's graph that a loss is computed from.

    Attributes:
        shared: whether a later loss reads some of it.
        own: the nodes that the loss's pass executes and no later loss reads.
    """

    shared: bool
    own: Sequence[Any]

    def free(self) -> None:
        """Free the tensors saved in ``own``, as a pass without ``retain_graph`` does."""
        for node in self.own:
            kind: Any = type(node)
            for name in _saved_fields(kind):
                saved = getattr(node, name)
                for tensor in saved if isinstance(saved, tuple) else (saved,):
                    # The first hook's result replaces the saved tensor. An error means that it is
                    # None, or has hooks already (checkpointing, offloading).
                    with suppress(RuntimeError):
                        tensor.register_hooks(_nothing, _is_freed)


KEPT = LossGraph(shared=True, own=())  # a graph of which nothing is known


def inspect_graphs(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[LossGraph]:
    """One ``LossGraph`` per loss, from a walk that visits every node once.

    Raises:
        ValueError: if no loss is computed from a parameter, or if reentrant activation
            checkpointing is found: parameters inside are no part of the graph, so that
            ``torch.autograd.grad`` does not see them.
    """
    wanted = {id(parameter) for parameter in parameters}
    executed: dict[Any, bool] = {}  # whether a pass must execute a node; complete for later losses
    graphs: list[LossGraph] = []
    for loss in reversed(losses):
        graph = _walk(loss.grad_fn, wanted, executed)
        graphs.append(graph)
    touched = any(executed.get(loss.grad_fn) or id(loss) in wanted for loss in losses)
    if not touched:
        raise ValueError(
            f"no loss touches any of the {len(parameters)} parameters: pass the parameters of the"
            " network that made the losses"
        )
    return graphs[::-1]


def graph_leaves(losses: Sequence[Tensor]) -> list[Tensor]:
    """The leaf tensors that losses are computed from, each once, as ``loss.backward()`` finds them.

    In the order of a depth-first walk from the first loss, then from the next: equal for equal
    graphs.

    Raises:
        ValueError: for ``fully_shard``, whose graph has gathered copies of the parameters.
    """
    leaves: dict[int, Tensor] = {}
    seen: set[Any] = set()
    for loss in losses:
        if loss.grad_fn is None:
            leaves[id(loss)] = loss
        stack = [loss.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if type(node).__name__ == "RegisterPostBackwardFunctionBackward":
                raise ValueError(
                    "parameters must be passed under fully_shard, found none: pass"
                    " model.parameters(), as the graph has gathered copies of them"
                )
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                leaves[id(leaf)] = leaf
            stack.extend(child for child, _ in reversed(node.next_functions))
    return list(leaves.values())


def _walk(root: Any, wanted: set[int], executed: dict[Any, bool]) -> LossGraph:
    """Depth first from ``root``, not beyond the nodes in ``executed``, to which it adds."""
    if root is None:
        return LossGraph(False, ())
    found: dict[Any, bool] = {}
    own: list[Any] = []
    shared = False
    stack: list[tuple[Any, list[Any]]] = [(root, [])]
    while stack:
        node, successors = stack.pop()
        if successors:  # all of them are in `found` or `executed`
            if any(found.get(child) or executed.get(child) for child in successors):
                found[node] = True
                own.append(node)
        elif node in executed:
            shared = shared or bool(node.next_functions)
        elif node not in found:
            if type(node).__name__ == "CheckpointFunctionBackward":
                raise ValueError(
                    "activation checkpointing must not be reentrant, found a reentrant one, whose"
                    " parameters a pass for each loss would miss: pass use_reentrant=False to it"
                )
            successors = [child for child, _ in node.next_functions if child is not None]
            # a leaf's node is where its .grad accumulates
            found[node] = not successors and id(getattr(node, "variable", None)) in wanted
            if successors:
                stack.append((node, successors))
                stack.extend((child, []) for child in successors)
    executed.update(found)
    return LossGraph(shared, own)


@cache
def _saved_fields(kind: Any) -> tuple[str, ...]:
    """The attributes of a kind of node that hold its saved tensors."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _nothing(_: Tensor) -> None:
    return None


def _is_freed(_: None) -> NoReturn:
    raise RuntimeError(
        "Trying to backward through the graph a second time, after its saved tensors were freed:"
        " pass retain_graph=True to the first backward"
    )
