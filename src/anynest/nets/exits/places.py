"""Places in an exported graph at which rows can be told apart, for the message of a bad cut."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from .cut import CutError, Cutter, is_tensor, shape_of
from .taps import Point


def refusal(cutter: Cutter, error: CutError, points: Sequence[Point]) -> str:
    """The message for a cut that carries a tensor without a batch dimension."""
    point = points[error.stage - 1]
    shape = ", ".join(map(str, shape_of(error.node)))
    near = nearest(cutter, point.path)
    advice = f"the nearest places that work: {', '.join(map(repr, near))}" if near else "none works"
    return (
        f"the exit after {point.name!r} must leave tensors with the batch as a dimension of its "
        f"own, found [{shape}] carried on, with batch {cutter.batch}; {advice}"
    )


def nearest(cutter: Cutter, path: str) -> list[str]:
    """The modules whose ends are nearest before and after that of ``path``."""
    last: dict[str, int] = {}
    for position, node in enumerate(cutter.nodes):
        for name, _ in (node.meta.get("nn_module_stack") or {}).values():
            last[name.removeprefix("body.")] = position
    if path not in last:
        return []
    here = last[path]
    before = [n for n in sorted(last, key=last.__getitem__) if n and last[n] < here]
    after = [n for n in sorted(last, key=last.__getitem__) if n and last[n] > here]
    found = []
    for names in (reversed(before), after):
        for name in names:
            if not name.startswith("exits") and _can_cut(cutter, last[name]):
                found.append(name)
                break
    return found


def _can_cut(cutter: Cutter, position: int) -> bool:
    """Whether all tensors that cross a position have a batch dimension."""
    order = {node: number for number, node in enumerate(cutter.nodes)}

    def crosses(node: fx.Node) -> bool:
        return order[node] <= position and any(
            order[user] > position and user.op != "output" for user in node.users
        )

    crossing = [n for n in cutter.nodes if n in cutter.varies and is_tensor(n) and crosses(n)]
    return all(cutter.batch_dimension(node) is not None for node in crossing)
