"""The allocator's peak in a step, in a pass of its own that is not timed.

On a CPU torch keeps no peak, so the profiler's record of every allocation and release is replayed.
The record begins before the network is built: weights, buffers, momentum, ``.grad`` and whatever a
method keeps from step to step count, the batch does not. What kernels' own libraries take for
themselves, past torch's allocator, is not seen.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from _problems import Problem
from _variants import Sgd, Trainer
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "measured from here"


def peak_bytes(problem: Problem, make: Callable[[Problem], Trainer]) -> int:
    """The peak of a step that is not the first, in bytes."""
    gc.collect()
    if problem.x.device.type == "cuda":
        return cuda_peak(problem, make)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        trainer = make(problem)
        trainer.step()
        with record_function(MARK):
            pass
        trainer.cycle()
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    return replay(record.profiler.kineto_results.events())


def replay(events: Any) -> int:
    """The most bytes that were live at once, after the mark."""
    mark = next(event.start_ns() for event in events if event.name() == MARK)
    changes = sorted(
        ((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"),
        key=lambda change: change[0],
    )
    live = peak = 0
    for when, count in changes:
        live += count
        if when >= mark:
            peak = max(peak, live)
    return peak


def cuda_peak(problem: Problem, make: Callable[[Problem], Trainer]) -> int:
    device = problem.x.device
    before = torch.cuda.memory_allocated(device)
    trainer = make(problem)
    trainer.step()
    torch.cuda.reset_peak_memory_stats(device)
    trainer.cycle()
    return torch.cuda.max_memory_allocated(device) - before


def row_bytes(problem: Problem) -> tuple[int, int]:
    """The size of all tasks' gradients, each with the entries that it touches, and of their sum."""
    trainer = Sgd(problem)
    total, touched = 0, {}
    for loss in problem.losses(trainer.model):
        grads = torch.autograd.grad(loss, trainer.parameters, retain_graph=True, allow_unused=True)
        sizes = {p: grad.nbytes for p, grad in enumerate(grads) if grad is not None}
        total += sum(sizes.values())
        touched |= sizes
    return total, sum(touched.values())
