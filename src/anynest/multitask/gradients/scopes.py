"""Projection within scopes: a departure from the paper, which projects over all parameters at once.

Task gradients that know their scopes (``TaskGradients.scopes``: parameter groups, or tensors) fall into parts
that have no tensor in common. Each part is a list of gradients of its own and is projected as one,
so that in every scope the update agrees with that scope's part of the first gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..methods.rules import Orthogonal, update_norm, weighted_sum
from .task_gradients import TaskGradients

Scope = Literal["all", "group", "tensor"]
Project = Callable[[TaskGradients, Sequence[int] | None], Orthogonal]


@dataclass(frozen=True, eq=False)
class Projected:
    """Components of rows, scope by scope; G scopes (one, of all, without ``scopes``).

    ``coefficients`` [G, S, S] or [S, S] without scopes: L of each.
    """

    parts: list[TaskGradients]
    coefficients: Tensor

    def norm(self, weights_S: Tensor) -> Tensor:
        """Norm of ``sum_i weights[i] * component_i`` over all scopes."""
        squares = [update_norm(part, weights_S).square() for part in self.parts if part.blocks]
        device = weights_S.device
        return torch.stack([square.to(device) for square in squares]).sum().sqrt()

    def sum(self, weights_S: Tensor) -> list[Tensor | None]:
        """``sum_i weights[i] * component_i``, one tensor (or None) per position."""
        update: list[Tensor | None] = [None] * len(self.parts[0].layouts)
        for part in self.parts:
            for p, tensor in enumerate(weighted_sum(part, weights_S)):
                if tensor is not None:
                    update[p] = tensor
        return update

    def in_terms_of_stored(self, weights_S: Tensor) -> Tensor:
        """[G, S] (or [S]) the factors of the gradients as they came that make up ``sum``."""
        found = [part.in_terms_of_stored(weights_S) for part in self.parts]
        return found[0] if self.coefficients.dim() == 2 else torch.stack(found)


def project_within(rows: TaskGradients, order: Sequence[int] | None, project: Project) -> Projected:
    """``project`` each scope's part of the rows in the order of priority.

    A scope that no task touches keeps its rows, of no entry: weights 1, coefficients 0.

    >>> from .rules import orthogonalize
    >>> g = [[torch.ones(1), torch.ones(1)], [torch.ones(1), -torch.ones(1)]]
    >>> project_within(TaskGradients.stack(g), None, orthogonalize).sum(torch.ones(2))
    [tensor([2.]), tensor([0.])]
    >>> project_within(TaskGradients.stack(g, scopes=(0, 1)), None, orthogonalize).sum(torch.ones(2))
    [tensor([1.]), tensor([1.])]
    """
    if rows.scopes is None:
        components, coefficients = project(rows, order)
        return Projected([components], coefficients)
    parts, lower = [], []
    for part in rows.parts():
        if part.blocks:
            components, coefficients = project(part, order)
        else:
            components, coefficients = part, torch.eye(rows.num_tasks, dtype=rows.new(0).dtype)
        parts.append(components)
        lower.append(coefficients.to(rows.device))
    return Projected(parts, torch.stack(lower))
