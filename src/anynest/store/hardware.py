"""The hardware and versions that a measurement was made with, and the choice of a device."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that a measurement was made with."""
    import torch

    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": accelerator,
    }


def find_device(name: str | torch.device, what: str = "device") -> torch.device:
    """The device of a name; ``auto`` is the first available one of cuda, mps, cpu.

    Args:
        name: ``auto``, or a name that ``torch.device`` accepts.
        what: the option's name in the error.

    Raises:
        ValueError: there is no such device here.

    >>> find_device("cpu")
    device(type='cpu')
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{what} must be auto, cpu, cuda or mps, found {name!r}") from error
    there = available.get(device.type, False)
    if there and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = False
    if not there:
        found = ", ".join(kind for kind, ok in available.items() if ok)
        raise ValueError(f"{what} {str(name)!r} is not available here: choose from auto, {found}")
    return device


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The name of the processor, from the system."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
