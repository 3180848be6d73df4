"""What a step is made of, measured in the same rounds as the variants.

The floor of an exact method with S losses: nobody who takes the gradient of each loss alone can do
with less than one forward pass and S backward passes, b_1 to b_S, where SGD has one, b_S::

    floor = (f + b_1 + ... + b_S) / (f + b_S)

f is everything of SGD's step that is not its backward pass: zero_grad, forward, losses and the
optimizer's step. b_i is ``torch.autograd.grad`` of loss i alone upon one graph, the last freeing it.
A floor so measured is that of the network's kernels; were their backward passes wasteful, it would
be too high. So the same is measured with each b_i on the graph of ``model.subnetwork(i)``, and
counted in multiply-adds, of which a backward pass takes twice the forward pass's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from _problems import Problem
from _variants import Exact, Sgd, wait

from anynest.nets import AnytimeNetwork


class Clock:
    """Seconds of pieces of work, the device's included."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.start = 0.0

    def begin(self) -> None:
        wait(self.problem)
        self.start = time.perf_counter()

    def end(self) -> float:
        wait(self.problem)
        return time.perf_counter() - self.start


class Floor(Sgd):
    """f, b_1 ... b_S of one step; the gradient of the last loss is what the optimizer gets."""

    def measure(self) -> dict[str, Any]:
        clock = Clock(self.problem)
        clock.begin()
        self.optimizer.zero_grad()
        losses = self.problem.losses(self.model)
        forward = clock.end()
        backward = []
        for i, loss in enumerate(losses):
            clock.begin()
            grads = torch.autograd.grad(
                loss, self.parameters, retain_graph=i < len(losses) - 1, allow_unused=True
            )
            backward.append(clock.end())
        del losses, loss
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        del grads
        clock.begin()
        self.optimizer.step()
        f = forward + clock.end()
        return {"f": f, "b": backward, "floor": (f + sum(backward)) / (f + backward[-1])}


class Alone(Sgd):
    """b_1 ... b_S, each on the graph of a subnetwork of its own, whose forward pass is not timed."""

    def measure(self) -> dict[str, Any]:
        assert isinstance(self.model, AnytimeNetwork)
        clock = Clock(self.problem)
        backward = []
        for stage in range(1, self.model.num_stages + 1):
            part = self.model.subnetwork(stage)
            (loss,) = self.problem.losses(part)
            parameters = list(part.parameters())
            clock.begin()
            torch.autograd.grad(loss, parameters)
            backward.append(clock.end())
        return {"b": backward}


class Combination(Exact):
    """The part of an exact step that is no backward pass: checks, gathering, dots, projection, sum."""

    def measure(self) -> dict[str, Any]:
        clock = Clock(self.problem)
        self.optimizer.zero_grad()
        losses = self.problem.losses(self.model)
        with timed_grad(clock) as spent:
            whole = Clock(self.problem)
            whole.begin()
            self.combiner.backward(losses, self.parameters)
            total = whole.end()
        self.optimizer.step()
        return {"backward": sum(spent), "passes": len(spent), "combination": total - sum(spent)}


class Bandwidth:
    """Bytes per second of ``c = a + s * b`` on arrays that no cache holds, as STREAM's triad.

    The memory traffic that a combination of S gradients cannot do without: each read twice, for the
    dot products and for the sum, and the sum written once.
    """

    def __init__(self, problem: Problem, entries: int = 1 << 24) -> None:
        self.clock = Clock(problem)
        self.a, self.b, self.c = torch.ones(3, entries, device=problem.x.device).unbind()

    def measure(self) -> float:
        self.clock.begin()
        torch.add(self.a, self.b, alpha=0.5, out=self.c)
        return 3 * self.a.nbytes / self.clock.end()


@contextmanager
def timed_grad(clock: Clock) -> Any:
    """Within, every ``torch.autograd.grad`` adds its seconds to the list that is given."""
    spent: list[float] = []
    original: Callable[..., Any] = torch.autograd.grad

    def grad(*args: Any, **kwargs: Any) -> Any:
        clock.begin()
        result = original(*args, **kwargs)
        spent.append(clock.end())
        return result

    torch.autograd.grad = grad
    try:
        yield spent
    finally:
        torch.autograd.grad = original


def floor_by_cost(problem: Problem) -> float | None:
    """The floor in multiply-adds: f counts 1 for each of the whole network's, a backward pass 2."""
    model = problem.build(False)
    if not isinstance(model, AnytimeNetwork):
        return None
    costs = model.cost(problem.x.shape[-1])
    macs = [row.multiply_adds for row in costs]
    return (macs[-1] + 2 * sum(macs)) / (3 * macs[-1])
