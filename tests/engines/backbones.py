"""Staged networks that are no nested ones: with segments, and with ``stages`` alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Segment(nn.Module):
    """One block of an MLP or a CNN, and its exit."""

    def __init__(self, body: nn.Module, head: nn.Module, *, last: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.last = body, head, last

    def forward(self, x: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        x = self.body(x)
        return (self.head(x),) if self.last else (self.head(x), x, *carried)


class Segmented(nn.Module):
    """A network of three segments; every second one carries the inputs' mask along."""

    def __init__(self, segments: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(segments)

    @property
    def num_stages(self) -> int:
        return len(self.parts)

    def segments(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [output for _, output in self.stages(x)]

    def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        state: tuple[Tensor, ...] = (x,)
        for number, segment in enumerate(self.parts, 1):
            output, *rest = segment(*state)
            state = tuple(rest)
            yield number, output


def mlp(dtype: torch.dtype = torch.float32) -> Segmented:
    """Floating-point vectors ``[B, 6]``, logits ``[B, 4]``; the body is in-place."""
    torch.manual_seed(0)
    sizes = [(6, 8), (8, 5), (5, 7)]
    return Segmented(
        [
            Segment(
                nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(inplace=True)),
                nn.Linear(b, 4),
                last=number == 2,
            )
            for number, (a, b) in enumerate(sizes)
        ]
    ).to(dtype)


class Tagger(nn.Module):
    """An LSTM over token ids and a mask; logits ``[B, T, 5]`` of every token; no segments."""

    num_stages = 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.first = nn.LSTM(6, 7, batch_first=True)
        self.second = nn.LSTM(7, 7, batch_first=True)
        self.heads = nn.ModuleList([nn.Linear(7, 5), nn.Linear(7, 5)])

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        return [output for _, output in self.stages(ids, mask)]

    def stages(self, ids: Tensor, mask: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        x, _ = self.first(self.embed(ids))
        if mask is not None:
            x = x * mask.unsqueeze(2)
        yield 1, self.heads[0](x)
        x, _ = self.second(x)
        yield 2, self.heads[1](x)


class Embedded(nn.Module):
    """An MLP over integer features ``[B, 3]``, scaled by ``weight`` ``[B]``; logits ``[B, 4]``."""

    num_stages = 2
    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 4)
        self.body = nn.Linear(12, 12)
        self.heads = nn.ModuleList([nn.Linear(12, 4), nn.Linear(12, 4)])

    def forward(self, features: Tensor, weight: Tensor) -> list[Tensor]:
        return [output for _, output in self.stages(features, weight)]

    def stages(self, features: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        x = self.embed(features).flatten(1) * weight.unsqueeze(1)
        yield 1, self.heads[0](x)
        yield 2, self.heads[1](self.body(x).relu_())
