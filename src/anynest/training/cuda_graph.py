"""A training step as a CUDA graph: recorded once, then replayed by one call.

A step of a small network is hundreds of short kernels, which the host launches more slowly than the
GPU runs them. A graph launches them all at once. A recorded step must not wait for the device,
allocate memory outside the graph's pool, or branch on a tensor's value.
"""

from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from .config.train_config import TrainConfig
from .distributed import World
from .errors import ConfigError

R = TypeVar("R")


class Recorder(Protocol):
    """Runs and records work: :class:`CudaRecorder`, or a stand-in for tests."""

    def run(self, work: Callable[[], R]) -> R:
        """Run the work now, in the place where it will be recorded."""

    def record(self, work: Callable[[], R]) -> tuple[Callable[[], None], R]:
        """Record the work without running it; a function that replays it, and its result."""


class CudaRecorder:
    """Records on its own stream, into one memory pool."""

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
        # thread_local: other threads, such as a data loader's, may use the device meanwhile
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            result = work()
        return graph.replay, result


class GraphedStep(Generic[R]):
    """``step(*inputs)``, run eagerly the first times, then as a CUDA graph.

    The first steps are real ones, which create what is created once (optimizer state, kernels).
    Inputs of another shape than the first ones', such as a last, smaller batch, always run eagerly.
    The weights are the same as without a graph.

    Args:
        step: forward, losses, a combiner's backward and the optimizer's step, with
            ``on_nonfinite="ignore"``, ``zero_grad(set_to_none=True)`` and an optimizer prepared by
            ``make_capturable``.
        device: a CUDA device.
        kind: the kind of the next step, where there are several, such as those of
            ``OSGD(refresh=k)``; each kind has its own graph.
        replayed: called with the kind after each replay, in which no Python of ``step`` has run.
        warmup: how many steps of a kind are run eagerly before it is recorded.
        recorder: a stand-in for :class:`CudaRecorder`.

    Returns:
        The result of ``step``. A replay's result is overwritten by the next replay.

    Raises:
        ValueError: the device is not a CUDA device.
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
        replay()  # recording ran the Python of the step, not its kernels
        return result


def make_capturable(optimizer: Optimizer, device: torch.device | str) -> None:
    """Prepare the optimizer's step for recording: its learning rates become tensors on the device.

    A schedule must then fill these tensors, not replace them.

    Raises:
        ValueError: torch has no capturable form of this optimizer.
    """
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        elif isinstance(optimizer, SGD) and not group["differentiable"]:
            group["fused"], group["foreach"] = (
                True,
                False,
            )  # the form that reads the rate on the device
        else:
            raise ValueError(
                f"a CUDA graph needs an optimizer that can be captured, found"
                f" {type(optimizer).__name__}: take SGD, Adam or AdamW"
            )
        rate = float(group["lr"])
        group.setdefault("initial_lr", rate)
        group["lr"] = torch.tensor(rate, device=device)
    # the first steps run eagerly on purpose: torch need not warn about it
    optimizer._warned_capturable_if_run_uncaptured = True


def require_capturable(config: TrainConfig, device: torch.device, world: World) -> None:
    """ConfigError where ``run.cuda_graph`` is set and the step cannot be recorded."""
    if not config.run.cuda_graph:
        return
    wrong = {
        f"a CUDA device, found {device}": device.type != "cuda",
        "method.on_nonfinite ignore (--on-nonfinite ignore), since a recorded step looks at no "
        f"loss, found {config.method.on_nonfinite}": config.method.on_nonfinite != "ignore",
        "float32 or bf16, found float16, whose scaler waits for the device": (
            config.run.precision == "float16"
        ),
        "a number for method.C, found calibrated, whose first steps differ": (
            config.method.C == "calibrated"
        ),
        f"one process, found {world.size}": world.size > 1,
    }
    for need, lacking in wrong.items():
        if lacking:
            raise ConfigError(f"run.cuda_graph needs {need}: change that, or leave it out")
    try:
        make_capturable(config.optimizer.build([nn.Parameter(torch.zeros(1, 1))]), "cpu")
    except ValueError as error:
        raise ConfigError(f"run.cuda_graph: {error}") from error
