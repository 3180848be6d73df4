"""Where and how a run computes: device, precision, threads, seed, checkpoints."""

from dataclasses import dataclass
from typing import Literal

from .config_io import Section, option

MAX_THREADS = 1024


@dataclass(frozen=True)
class RunConfig(Section):
    """Everything of a run that is not the network, the data or the update."""

    SECTION = "run"

    seed: int = option(0, "--seed", "of weights, batches and augmentation", at_least=0)
    device: str = option("auto", "--device", "auto, cpu, cuda, cuda:1, mps")
    precision: Literal["float32", "bf16", "float16"] = option(
        "float32", "--precision", "of the forward pass (autocast)"
    )
    channels_last: bool = option(False, "--channels-last", "memory layout")
    compile: bool = option(
        False,
        "--compile",
        "torch.compile, node by node where the method takes one pass per loss",
    )
    cuda_graph: bool = option(
        False,
        "--cuda-graph",
        "record a step once and replay it (CUDA, with --on-nonfinite ignore)",
    )
    deterministic: bool = option(
        False,
        "--deterministic",
        "deterministic kernels only (a CPU run is deterministic without)",
    )
    threads: int | None = option(
        None,
        "--threads",
        "torch threads on the CPU (default: torch's choice)",
        at_least=1,
        at_most=MAX_THREADS,
    )
    save_minutes: float = option(
        10.0, "--save-minutes", "longest time between checkpoints; 0: no limit", at_least=0
    )
    save_batches: int = option(
        0, "--save-batches", "most batches between checkpoints; 0: no limit", at_least=0
    )
    sync_batch_norm: bool = option(
        True,
        "--sync-batch-norm",
        "under torchrun: batch norms see the whole batch, as in one process; without, each rank's "
        "part (and running statistics are averaged)",
    )
    gradient_stats: bool = option(
        True,
        "--gradient-stats",
        "measure the cosines between the losses' gradients on five batches an epoch, where the "
        "method does not know them anyway",
    )
    tensorboard: bool = option(False, "--tensorboard", "write events (an extra)")
