"""Where and how a run computes: device, precision, threads, seeds, determinism."""

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from ...store import hardware
from ...store.hardware import describe_environment, usable_cores
from ..errors import ConfigError

__all__ = [
    "RunConfig",
    "computing",
    "describe_environment",
    "find_device",
    "seed_everything",
    "usable_cores",
]


@dataclass(frozen=True)
class RunConfig:
    """Everything of a run that is not the network, the data or the update."""

    seed: int = field(
        default=0, metadata={"flag": "--seed", "help": "of weights, batches and augmentation"}
    )
    device: str = field(
        default="auto", metadata={"flag": "--device", "help": "auto, cpu, cuda, cuda:1, mps"}
    )
    precision: Literal["float32", "bf16", "float16"] = field(
        default="float32",
        metadata={"flag": "--precision", "help": "of the forward pass (autocast)"},
    )
    channels_last: bool = field(
        default=False, metadata={"flag": "--channels-last", "help": "memory layout"}
    )
    compile: bool = field(
        default=False,
        metadata={
            "flag": "--compile",
            "help": "torch.compile, node by node where the method takes one pass per loss",
        },
    )
    cuda_graph: bool = field(
        default=False,
        metadata={
            "flag": "--cuda-graph",
            "help": "record a step once and replay it (CUDA, with --on-nonfinite ignore)",
        },
    )
    deterministic: bool = field(
        default=False,
        metadata={
            "flag": "--deterministic",
            "help": "deterministic kernels only (a CPU run is deterministic without)",
        },
    )
    threads: int | None = field(
        default=None, metadata={"flag": "--threads", "help": "torch threads on the CPU"}
    )
    save_minutes: float = field(
        default=10.0,
        metadata={
            "flag": "--save-minutes",
            "help": "longest time between checkpoints; 0: no limit",
        },
    )
    save_batches: int = field(
        default=0,
        metadata={
            "flag": "--save-batches",
            "help": "most batches between checkpoints; 0: no limit",
        },
    )
    sync_batch_norm: bool = field(
        default=True,
        metadata={
            "flag": "--sync-batch-norm",
            "help": "under torchrun: batch norms see the whole batch, as in one process; without, "
            "each rank's part (and running statistics are averaged)",
        },
    )
    gradient_stats: bool = field(
        default=True,
        metadata={
            "flag": "--gradient-stats",
            "help": "measure the cosines between the losses' gradients on one batch an epoch, "
            "where the method does not know them anyway",
        },
    )
    tensorboard: bool = field(
        default=False, metadata={"flag": "--tensorboard", "help": "write events (an extra)"}
    )

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"run.threads must be at least 1, found {self.threads}")
        if self.save_minutes < 0 or self.save_batches < 0:
            raise ConfigError("run.save_minutes and run.save_batches must not be negative")
        if self.seed < 0:
            raise ConfigError(f"run.seed must not be negative, found {self.seed}")


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """``auto`` is the first of cuda, mps, cpu; ConfigError where the device is not there.

    ``local_rank``: this process's number on its machine, which has a GPU of its own.
    """
    if local_rank is not None:
        return _find_own(name, local_rank)
    try:
        return hardware.find_device(name, "run.device")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _find_own(name: str, local_rank: int) -> torch.device:
    """One rank's device: there is no choosing a GPU by number, and no collectives on mps."""
    kind = name
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = find_device(kind)
    if device.type == "mps" or device.index is not None:
        raise ConfigError(
            f"run.device must be auto, cpu or cuda under torchrun, found {name!r}: each process "
            "takes the GPU of its local rank"
        )
    if device.type == "cuda":
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return device


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's (where imported) and torch's global generators."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def computing(config: RunConfig, local_rank: int | None = None) -> Iterator[torch.device]:
    """The device, with threads and determinism set; torch's settings are put back afterwards."""
    device = find_device(config.device, local_rank)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic
    try:
        yield device
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
