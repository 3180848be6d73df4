"""Checks of a staged network's segments against its forward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def walk(
    segments: Sequence[nn.Module], inputs: Sequence[Tensor], rows: Sequence[Sequence[int]] = ()
) -> list[Tensor]:
    """The outputs of all segments; after stage s, continue with ``rows[s - 1]``."""
    state: tuple[Tensor, ...] = tuple(inputs)
    outputs = []
    for number, segment in enumerate(segments):
        output, *rest = segment(*state)
        outputs.append(output)
        if number < len(rows):
            rest = [tensor.index_select(0, torch.tensor(rows[number])) for tensor in rest]
        state = tuple(rest)
    assert state == ()
    return outputs


def check(model: Any, make: Any, *, exact: bool = True) -> None:
    """All ways of evaluation agree, at batch sizes 1, 3 and 8, where rows leave and join."""
    model.eval()
    segments = model.segments()
    assert len(segments) == model.num_stages
    with torch.no_grad():
        for batch in (1, 3, 8):
            inputs = make(batch)
            wanted = model(*inputs)
            tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {}
            torch.testing.assert_close(walk(segments, inputs), wanted, **tolerance)
            torch.testing.assert_close(
                [output for _, output in model.stages(*inputs)], wanted, **tolerance
            )
        inputs = make(6)
        wanted = model(*inputs)
        kept = walk(segments, inputs, [[5, 1, 2]])
        for output, all_rows in zip(kept[1:], wanted[1:], strict=True):
            torch.testing.assert_close(output, all_rows[[5, 1, 2]], rtol=1e-4, atol=1e-5)
        # two batches that meet after the first stage
        halves = [segments[0](*[t[rows] for t in inputs]) for rows in ([0, 1], [2, 3, 4, 5])]
        state = tuple(torch.cat(pair) for pair in zip(*[half[1:] for half in halves], strict=True))
        joined = walk(segments[1:], state)
        torch.testing.assert_close(joined, wanted[1:], rtol=1e-4, atol=1e-5)
