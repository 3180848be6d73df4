"""What losses are computed from, as autograd has it: walks that compute nothing."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor


def check_touched(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    """ValueError unless some loss is computed from some parameter.

    Stops at the first parameter, which is near as a rule: a head's. ``.grad`` is not looked at.
    """
    wanted = {id(parameter) for parameter in parameters}
    if any(id(loss) in wanted for loss in losses):
        return
    for node in nodes(losses):
        if id(getattr(node, "variable", None)) in wanted:  # where autograd accumulates
            return
    raise ValueError(
        f"no loss touches any of the {len(parameters)} parameters: pass the parameters of the"
        " network that made the losses"
    )


def check_checkpointing(losses: Sequence[Tensor]) -> None:
    """ValueError where activation checkpointing hides parameters from ``torch.autograd.grad``.

    In its reentrant form the parameters inside are no part of the graph: they get gradients from a
    plain ``loss.backward()`` alone. Walks the whole graph.
    """
    if any("CheckpointFunction" in node.name() for node in nodes(losses)):
        raise ValueError(
            "activation checkpointing must not be reentrant, found a reentrant one, whose"
            " parameters a pass for each loss would miss: pass use_reentrant=False to it"
        )


def nodes(losses: Sequence[Tensor]) -> Iterator[Any]:
    """The graph's nodes, breadth first, each as soon as it is found."""
    seen: set[Any] = set()
    queue: deque[Any] = deque()
    following = [loss.grad_fn for loss in losses]
    while True:
        for node in following:
            if node is not None and node not in seen:
                seen.add(node)
                queue.append(node)
                yield node
        if not queue:
            return
        following = [node for node, _ in queue.popleft().next_functions]
