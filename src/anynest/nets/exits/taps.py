"""Forward hooks that keep what the exits read while the body runs.

The heads run after the body, so that a checkpointed block, which runs again in the backward pass,
holds none of their operations; a paused pass evaluates them at once. An activation that the body
writes to afterwards, as by an in-place ReLU, is copied. Without a pass of its own thread, a hook
does nothing: the body can be used alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .values import Read, tensor_of

Emit = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Point:
    """Where an exit reads.

    Attributes:
        name: as the user gave it.
        path: the module's name in the body.
        call: which call of the module, from 0.
        calls: how often it is called in one pass.
        read: which tensor of its output.
        clone: whether the activation is copied, as it is written to afterwards.
    """

    name: str
    path: str
    call: int
    calls: int
    read: Read = None
    clone: bool = False


class Pass:
    """One pass through the body: the calls so far, and what the exits read."""

    def __init__(self, taps: Taps, emit: Emit | None) -> None:
        self.taps = taps
        self.emit = emit
        self.calls: dict[str, int] = {}
        self.activations: dict[int, tuple[Tensor, int]] = {}  # and their versions

    def called(self, path: str, value: Any) -> None:
        """Keep what exits at this call of a module read, or evaluate their heads."""
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        for stage, point in enumerate(self.taps.points, 1):
            if point.path == path and point.call == call:
                what = f"the output of {point.name!r}"
                activation = tensor_of(value, point.read, what, first=True)
                if point.clone:
                    activation = activation.clone()
                if self.emit is not None:
                    self.emit(stage, self.taps.heads[str(stage)](activation))
                else:
                    self.activations[stage] = activation, _version(activation)

    def outputs(self) -> list[Tensor]:
        """The exits' outputs, after the pass.

        Raises:
            RuntimeError: the body has written to an activation meanwhile.
        """
        outputs = []
        for stage, point in enumerate(self.taps.points, 1):
            activation, version = self.activations.pop(stage)
            if _version(activation) != version:
                raise RuntimeError(
                    f"the body must not write in place to the activation of {point.name!r} in "
                    "training mode alone, found that it does; use operations that are not in place"
                )
            outputs.append(self.taps.heads[str(stage)](activation))
        return outputs


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to, where torch counts that."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


_running = threading.local()  # .passes: those of this thread, the innermost last


class Tap:
    """The forward hook of a module."""

    def __init__(self, taps: Taps, path: str) -> None:
        self.taps = taps
        self.path = path

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Give the output to this thread's pass, if there is one."""
        if torch.compiler.is_dynamo_compiling() and self.taps.traced is None:
            _outside_graphs(self, output)  # the body is compiled, but not the pass
        else:
            self.receive(output)

    def receive(self, output: Any) -> None:
        """Give the output to the pass."""
        run = self.taps.current()
        if run is not None:
            run.called(self.path, output)


# Graphs of a compiled body end at each exit, so that its loss reaches no later parameters.
_outside_graphs = torch.compiler.disable(Tap.receive)  # type: ignore[no-untyped-call]


class Taps:
    """The exits of one network.

    Args:
        points: in the order of execution.
        heads: by stage number, from "1".
    """

    def __init__(self, points: Sequence[Point], heads: nn.ModuleDict) -> None:
        self.points = tuple(points)
        self.heads = heads
        self.traced: Pass | None = None  # torch.compile traces no thread-local values

    def attach(self, body: nn.Module) -> None:
        """Register the hooks, one a module."""
        for path in dict.fromkeys(point.path for point in self.points):
            body.get_submodule(path).register_forward_hook(Tap(self, path))

    def detach(self, body: nn.Module) -> None:
        """Remove the hooks."""
        for path in dict.fromkeys(point.path for point in self.points):
            hooks = body.get_submodule(path)._forward_hooks
            for key in [k for k, hook in hooks.items() if getattr(hook, "taps", None) is self]:
                del hooks[key]

    def current(self) -> Pass | None:
        """The pass of this thread."""
        if torch.compiler.is_dynamo_compiling():
            return self.traced
        passes: list[Pass] = getattr(_running, "passes", [])
        for run in reversed(passes):
            if run.taps is self:
                return run
        return None

    def run(self, body: Callable[[], Any], emit: Emit | None = None) -> tuple[list[Tensor], Any]:
        """Call the body once.

        Args:
            body: calls it.
            emit: called with (stage, output) as soon as an exit's output is known.

        Returns:
            The outputs of the exits (none where they were emitted), and that of the body.

        Raises:
            RuntimeError: a module was not called as often as in the example, or an activation was
                written to.
        """
        run = Pass(self, emit)
        if torch.compiler.is_dynamo_compiling():
            self.traced = run
            value = body()
            self.traced = None
        else:
            passes: list[Pass] = _running.__dict__.setdefault("passes", [])
            passes.append(run)
            try:
                value = body()
            finally:
                passes.pop()
        for point in self.points:
            if run.calls.get(point.path, 0) != point.calls:
                raise RuntimeError(
                    f"{point.path!r} must run {point.calls} times in a pass as in the example, "
                    f"found {run.calls.get(point.path, 0)}; where it was replaced or the number "
                    "changes with the input, call add_exits again or name another module"
                )
        return [] if emit is not None else run.outputs(), value
