"""The device that a run computes on, with its threads and determinism."""

import contextlib
import os
from collections.abc import Iterator

import torch

from ..store import hardware
from .config.run_config import RunConfig
from .errors import ConfigError


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device called ``name``; ``auto`` is the first of cuda, mps, cpu.

    Args:
        name: the config's ``run.device``.
        local_rank: this process's number on its machine under torchrun: it takes the GPU of that
            number, and has no choice of another.

    Raises:
        ConfigError: the device is not available.
    """
    kind = name
    if local_rank is not None and name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"  # no collectives on mps
    try:
        device = hardware.find_device(kind, "run.device")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if local_rank is None:
        return device
    if device.type == "mps" or device.index is not None:
        raise ConfigError(
            f"run.device must be auto, cpu or cuda under torchrun, found {name!r}: each process "
            "takes the GPU of its local rank"
        )
    if device.type == "cuda":
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return device


@contextlib.contextmanager
def computing(config: RunConfig, local_rank: int | None = None) -> Iterator[torch.device]:
    """Set threads and determinism, give the device, and restore torch's settings afterwards."""
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
