"""The ways to take a training step that are timed side by side.

Each has its own copy of the network and its own SGD with momentum; a step is zero_grad, forward,
losses, one combined gradient into ``.grad``, and the optimizer's step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from _problems import Problem
from torch import Tensor

from anynest import OSGD


class Left(Exception):
    """A variant that cannot be had here, and why; it is left out of the run."""


class Trainer:
    """A network in training; subclasses say how losses become ``.grad``."""

    def __init__(self, problem: Problem, plain: bool = False) -> None:
        self.problem = problem
        self.model = problem.build(plain)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # small, so that many rounds on one batch leave the numbers as ordinary as they began
        self.optimizer = torch.optim.SGD(self.parameters, lr=1e-3, momentum=0.9)

    def gradient(self, losses: list[Tensor]) -> None:
        raise AssertionError("a subclass says how")

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.gradient(self.problem.losses(self.model))
        self.optimizer.step()

    def cycle(self) -> None:
        """The steps after which nothing new happens."""
        self.step()

    def seconds(self) -> float:
        """The time of a step."""
        wait(self.problem)
        start = time.perf_counter()
        self.step()
        wait(self.problem)
        return time.perf_counter() - start


def wait(problem: Problem) -> None:
    """Until the device is done with all that was asked of it."""
    if problem.x.device.type == "cuda":
        torch.cuda.synchronize()


class Sgd(Trainer):
    """The average of the losses, one ordinary backward pass."""

    def gradient(self, losses: list[Tensor]) -> None:
        (sum(losses[1:], start=losses[0]) / len(losses)).backward()


class Exact(Trainer):
    """``OSGD()``."""

    def __init__(self, problem: Problem, plain: bool = False) -> None:
        super().__init__(problem, plain)
        self.combiner = OSGD()

    def gradient(self, losses: list[Tensor]) -> None:
        self.stats = self.combiner.backward(losses, self.parameters)


class Lazy(Exact):
    """``OSGD(refresh=k)``: the mean step of a cycle, one that refreshes and k - 1 that do not.

    A whole cycle in one round would let the machine drift; so each round times one step of either
    kind and weighs them.
    """

    every = 16

    def __init__(self, problem: Problem, plain: bool = False) -> None:
        super().__init__(problem, plain)
        try:
            self.combiner = OSGD(refresh=self.every)
        except TypeError as error:
            raise Left(f"OSGD has no refresh: {error}") from error

    def begin_cycle(self) -> None:
        """The next step refreshes."""
        state = self.combiner.state_dict()
        state["refresh"]["age"] = self.every
        self.combiner.load_state_dict(state)

    def cycle(self) -> None:
        self.begin_cycle()
        self.step()
        self.step()

    def seconds(self) -> float:
        self.begin_cycle()
        first = super().seconds()
        assert self.stats.refreshed
        rest = super().seconds()
        assert not self.stats.refreshed
        return (first + (self.every - 1) * rest) / self.every


class Naive(Trainer):
    """OSGD as anyone would write it: flat vectors padded with zeros, Gram-Schmidt over them."""

    def gradient(self, losses: list[Tensor]) -> None:
        vectors = []
        for loss in losses:
            grads = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            vectors.append(
                torch.cat(
                    [
                        torch.zeros_like(p).flatten() if grad is None else grad.flatten()
                        for p, grad in zip(self.parameters, grads, strict=True)
                    ]
                )
            )
        kept: list[Tensor] = []
        for vector in vectors:
            for other in kept:
                vector = vector - (vector @ other) / (other @ other) * other
            kept.append(vector)
        total = torch.stack(kept).sum(dim=0)
        start = 0
        for parameter in self.parameters:
            parameter.grad = total[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()


class Prototype(Trainer):
    """OSGD in a few lines: float32 dots tensor by tensor, a float64 Cholesky factor, sums in place.

    As fast as plain code gets, and not exact: gradients may share memory, and nearly parallel ones
    lose their digits.
    """

    def gradient(self, losses: list[Tensor]) -> None:
        last = len(losses) - 1
        rows = [
            torch.autograd.grad(loss, self.parameters, retain_graph=i < last, allow_unused=True)
            for i, loss in enumerate(losses)
        ]
        gram = torch.zeros(len(losses), len(losses), dtype=torch.float64)
        for column in zip(*rows, strict=True):
            known = [(i, grad.view(-1)) for i, grad in enumerate(column) if grad is not None]
            for i, a in known:
                for j, b in known:
                    if j <= i:
                        gram[i, j] += torch.dot(a, b)
        root = torch.linalg.cholesky(gram)  # of the lower triangle
        unit = torch.ones(len(losses), 1, dtype=torch.float64)
        weights = torch.linalg.solve_triangular(
            (root / root.diagonal()).T, unit, upper=True, unitriangular=True
        )
        w = weights[:, 0].tolist()
        for parameter, column in zip(self.parameters, zip(*rows, strict=True), strict=True):
            terms = [(w[i], grad) for i, grad in enumerate(column) if grad is not None]
            if terms:
                total = terms[0][1].mul_(terms[0][0])
                for weight, grad in terms[1:]:
                    total.add_(grad, alpha=weight)
                parameter.grad = total


class TorchJD(Trainer):
    """TorchJD's autojac with one of its aggregators."""

    def __init__(self, problem: Problem, plain: bool, aggregator: str, chunk: int | None) -> None:
        super().__init__(problem, plain)
        try:
            from torchjd import aggregation, autojac
        except ImportError as error:
            raise Left(f"torchjd: {error}") from error
        self.autojac, self.chunk = autojac, chunk
        try:
            self.aggregator = getattr(aggregation, aggregator)()
        except ImportError as error:
            raise Left(f"torchjd {aggregator}: {error}") from error

    def gradient(self, losses: list[Tensor]) -> None:
        self.autojac.backward(losses, inputs=self.parameters, parallel_chunk_size=self.chunk)
        self.autojac.jac_to_grad(self.parameters, self.aggregator)


class PytorchOptimizer(Trainer):
    """pytorch_optimizer's PCGrad, which does the backward passes and sets ``.grad``."""

    def __init__(self, problem: Problem, plain: bool = False) -> None:
        super().__init__(problem, plain)
        try:
            from pytorch_optimizer import PCGrad
        except ImportError as error:
            raise Left(f"pytorch_optimizer: {error}") from error
        self.wrapped: Any = PCGrad(self.optimizer)

    def gradient(self, losses: list[Tensor]) -> None:
        self.wrapped.pc_backward(losses)


Maker = Callable[[Problem], Trainer]


def jd(aggregator: str, chunk: int | None) -> Maker:
    def make(problem: Problem) -> Trainer:
        # vmap knows no rule for a custom backward pass: it gets the network without fused kernels
        return TorchJD(problem, problem.has_plain and chunk is None, aggregator, chunk)

    return make


# name: (how it is shown, how it is made)
VARIANTS: dict[str, tuple[str, Maker]] = {
    "sgd": ("SGD, mean of the losses", Sgd),
    "exact": ("OSGD, ours, exact", Exact),
    "lazy": (f"OSGD, ours, refresh={Lazy.every}", Lazy),
    "naive": ("OSGD, naive", Naive),
    "prototype": ("OSGD, prototype in float32", Prototype),
    "naive-plain": ("OSGD, naive, plain kernels", lambda problem: Naive(problem, plain=True)),
    "jd-pcgrad-1": ("TorchJD PCGrad, chunk 1", jd("PCGrad", 1)),
    "jd-upgrad-1": ("TorchJD UPGrad, chunk 1", jd("UPGrad", 1)),
    "jd-pcgrad-all": ("TorchJD PCGrad, chunk None", jd("PCGrad", None)),
    "jd-upgrad-all": ("TorchJD UPGrad, chunk None", jd("UPGrad", None)),
    "pcgrad": ("pytorch_optimizer PCGrad", PytorchOptimizer),
}
