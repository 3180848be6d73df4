"""A training step as a CUDA graph: recorded once, then started by one call.

A step of a small network is hundreds of short kernels, which the host starts more slowly than the
GPU runs them. A graph starts them all at once. What a recorded step may not do: wait for the device,
take memory that the graph does not own, or decide anything by a tensor's value.
"""

from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

R = TypeVar("R")


class Recorder(Protocol):
    """How work is run and recorded; ``CudaRecorder``, or a stand-in."""

    def run(self, work: Callable[[], R]) -> R:
        """The work done now, in the place where it will be recorded."""

    def record(self, work: Callable[[], R]) -> tuple[Callable[[], None], R]:
        """The work recorded and not done: what does it, and where its result will be."""


class CudaRecorder:
    """Records on a stream of its own, into one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], R]) -> R:
        here = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = work()
        here.wait_stream(self.stream)
        return result

    def record(self, work: Callable[[], R]) -> tuple[Callable[[], None], R]:
        graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile, as a data loader's does
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            result = work()
        return graph.replay, result


class GraphedStep(Generic[R]):
    """``step(*inputs)``, the first times as it is, then as a CUDA graph.

    The first steps are real ones, which settle what is made once (optimizer state, kernels). Inputs
    of another shape than the first ones', such as a last, smaller batch, are always taken as they
    are. So the weights go where they would have gone without.

    Args:
        step: forward, losses, a combiner's backward and the optimizer's step, with
            ``on_nonfinite="ignore"``, ``zero_grad(set_to_none=True)`` and an optimizer made ready by
            ``make_capturable``.
        device: a CUDA device.
        kind: where steps are of several kinds, such as those of ``OSGD(refresh=k)``, which comes
            next; each has a graph of its own.
        replayed: told the kind after each replay, in which no Python of ``step`` has run.
        warmup: how many steps of a kind are taken before it is recorded.

    What a replay returns lies where the next one will write.

    Raises ValueError for a device other than CUDA.
    """

    def __init__(
        self,
        step: Callable[..., R],
        device: torch.device | str,
        *,
        kind: Callable[[], Hashable] = lambda: None,
        replayed: Callable[[Any], None] = lambda kind: None,
        warmup: int = 3,
        recorder: Recorder | None = None,
    ) -> None:
        device = torch.device(device)
        if recorder is None and device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a CUDA device, found {device}: take plain steps")
        self.step, self.kind, self.replayed, self.warmup = step, kind, replayed, warmup
        self.recorder: Recorder = recorder or CudaRecorder(device)
        self.inputs: list[Tensor] = []
        self.taken: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, tuple[Callable[[], None], R]] = {}

    def __call__(self, *inputs: Tensor) -> R:
        if not self.inputs:
            self.inputs = [torch.empty_like(given) for given in inputs]
        for own, given in zip(self.inputs, inputs, strict=True):
            if own.shape != given.shape or own.dtype != given.dtype:
                return self.recorder.run(lambda: self.step(*inputs))
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        kind = self.kind()
        if kind in self.graphs:
            replay, result = self.graphs[kind]
            replay()
            self.replayed(kind)
            return result
        if self.taken.get(kind, 0) < self.warmup:
            self.taken[kind] = self.taken.get(kind, 0) + 1
            return self.recorder.run(lambda: self.step(*self.inputs))
        self.graphs[kind] = self.recorder.record(lambda: self.step(*self.inputs))
        replay, result = self.graphs[kind]
        replay()  # recording did nothing but run the step's Python
        return result


def make_capturable(optimizer: Optimizer, device: torch.device | str) -> None:
    """Let the optimizer's step be recorded: its learning rate becomes a tensor on the device.

    A schedule must then fill that tensor, not replace it. Raises ValueError for an optimizer of
    which torch has no such form.
    """
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        elif isinstance(optimizer, SGD) and not group["differentiable"]:
            group["fused"], group["foreach"] = True, False  # the form that reads the rate there
        else:
            raise ValueError(
                f"a CUDA graph needs an optimizer that can be captured, found"
                f" {type(optimizer).__name__}: take SGD, Adam or AdamW"
            )
        rate = float(group["lr"])
        group.setdefault("initial_lr", rate)
        group["lr"] = torch.tensor(rate, device=device)
    # the first steps are taken as they are: no reason for torch to warn of it
    optimizer._warned_capturable_if_run_uncaptured = True
