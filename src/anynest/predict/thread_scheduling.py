"""Linux scheduling of the computing thread, so that the waiting caller wakes on time.

The kernel may place caller and computing thread on one core, and a waking thread does not preempt
one that is within its time slice. Under EEVDF (Linux 6.6) a thread with a longer slice has a later
virtual deadline, so the caller with the default slice goes first. A larger nice value has the same
effect, but gives up CPU time where other programs load every core. A server's event loop wakes often
and on the same core, so that its own use of time makes it wait: there both serve together.

Slices: ``sched_setattr(2)`` with ``sched_runtime`` for SCHED_OTHER, Linux 6.12 and later, without
privileges. docs/thread_scheduling.md has measurements.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading

SCHEDULING = ("auto", "slice", "nice", "behind", "none")
SLICE = 20_000_000  # nanoseconds; the kernel's default is about 3 ms, its maximum 100 ms
NICE = 5  # added to the thread's nice value
BEHIND_NICE = 10  # the same where a thread is to stay behind all others of its program
FAIR = (0, 3)  # SCHED_OTHER, SCHED_BATCH
MAX_NICE = 19

# syscall numbers (sched_setattr, sched_getattr)
_SYSCALLS = {
    "x86_64": (314, 315),
    "aarch64": (274, 275),
    "riscv64": (274, 275),
    "loongarch64": (274, 275),
    "ppc64le": (355, 356),
    "s390x": (345, 346),
}


class _SchedAttr(ctypes.Structure):
    """``struct sched_attr``, version 0."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def check_scheduling(scheduling: str) -> None:
    """ValueError for an unknown option."""
    if scheduling not in SCHEDULING:
        raise ValueError(f"scheduling must be one of {', '.join(SCHEDULING)}, found {scheduling!r}")


def schedule_thread(scheduling: str) -> str:
    """Change the scheduling of the calling thread. Never raises.

    Args:
        scheduling: ``"slice"``: a time slice of 20 ms; ``"nice"``: a nice value 5 larger;
            ``"auto"``: a slice where the kernel has it, else nice; ``"behind"``: the slice where the
            kernel has it, and a nice value 10 larger; ``"none"``.

    Returns:
        What took effect: ``"slice"``, ``"nice"``, ``"behind"`` (the nice value at least) or
        ``"none"``. Always ``"none"`` on other systems than Linux, and for a thread that is not
        scheduled as an ordinary one.
    """
    if scheduling == "none" or sys.platform != "linux":
        return "none"
    try:
        if scheduling == "behind":
            _lengthen_slice()
            return "behind" if _raise_nice(BEHIND_NICE) else "none"
        if scheduling in ("auto", "slice") and _lengthen_slice():
            return "slice"
        if scheduling in ("auto", "nice") and _raise_nice(NICE):
            return "nice"
    except (OSError, AttributeError, ValueError):
        pass
    return "none"


def read_slice() -> int | None:
    """The calling thread's time slice in nanoseconds; None where the kernel does not tell."""
    attributes = _get_attributes()
    return attributes.runtime or None if attributes and attributes.policy in FAIR else None


def _lengthen_slice() -> bool:
    attributes = _get_attributes()
    if attributes is None or attributes.policy not in FAIR:
        return False
    attributes.runtime = SLICE  # the nice value stays as it was read
    attributes.flags = 0
    if _syscall(0, attributes, 0) != 0:
        return False
    return read_slice() == SLICE  # older kernels ignore the field


def _raise_nice(by: int) -> bool:
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, min(MAX_NICE, before + by))
    return os.getpriority(os.PRIO_PROCESS, thread) > before


def _get_attributes() -> _SchedAttr | None:
    attributes = _SchedAttr()
    size = ctypes.sizeof(attributes)
    return attributes if _syscall(1, attributes, size, 0) == 0 else None


def _syscall(which: int, attributes: _SchedAttr, *arguments: int) -> int:
    """``sched_setattr`` (0) or ``sched_getattr`` (1) for the calling thread; -1 on failure."""
    numbers = _SYSCALLS.get(platform.machine())
    if numbers is None:
        return -1
    attributes.size = ctypes.sizeof(attributes)
    call = ctypes.CDLL(None, use_errno=True).syscall
    unsigned = [ctypes.c_uint(value) for value in arguments]
    return int(call(ctypes.c_long(numbers[which]), 0, ctypes.byref(attributes), *unsigned))
