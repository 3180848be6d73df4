"""Autograd's graph of the losses, inspected before the backward passes; computes nothing."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, NoReturn

from torch import Tensor


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
            found[node] = id(getattr(node, "variable", None)) in wanted  # where .grad accumulates
            successors = [child for child, _ in node.next_functions if child is not None]
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
