"""A forward pass that pauses at each exit, for networks that cannot be cut.

The pass runs in a thread of its own; between two exits the caller waits, between two requests the
thread does. It has the caller's threads of torch, gradient and autocast modes, context variables
and device.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack

import torch
from torch import Tensor


class _Closed(BaseException):
    """Ends the pass: the caller wants no more."""


def _modes() -> Callable[[ExitStack], None]:
    """Save the caller's modes; the result enters them in another thread."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds]
    cache = torch.is_autocast_cache_enabled()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def enter(stack: ExitStack) -> None:
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(grad))
        for kind, dtype in autocast:
            stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=cache))
        if stream is not None:
            stack.enter_context(torch.cuda.stream(stream))

    return enter


def paused_pass(
    run: Callable[[Callable[[int, Tensor], None]], Tensor],
) -> Generator[tuple[int, Tensor] | Tensor]:
    """Yield (stage, output) of each exit, then the last output alone.

    Closing the generator raises within the pass, and waits for its thread to end.

    Args:
        run: the pass; it calls its argument with (stage, output) at each exit.
    """
    requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # torch's threads; None: end
    outcomes: queue.SimpleQueue[tuple[int, Tensor] | Tensor | BaseException] = queue.SimpleQueue()
    enter = _modes()

    def wait() -> None:
        threads = requests.get()
        if threads is None:
            raise _Closed
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def emit(stage: int, output: Tensor) -> None:
        outcomes.put((stage, output))
        wait()

    def work() -> None:
        try:
            with ExitStack() as stack:
                enter(stack)
                wait()
                outcomes.put(run(emit))
        except BaseException as error:
            outcomes.put(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), daemon=True, name="anynest-pass")
    thread.start()
    try:
        while True:
            requests.put(torch.get_num_threads())
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
            if isinstance(outcome, Tensor):
                return
    finally:
        requests.put(None)
        thread.join()
