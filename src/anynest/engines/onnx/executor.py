"""A network as ONNX Runtime runs it: one session a stage, and the memory in which state passes on.

Each evaluation has a *slot*: arrays for the images, the state and the logits, bound once to every stage's
inputs and outputs. A step is then one call, and nothing is allocated, copied or converted between stages.

Legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...nets.nested.plan import IMAGE
from ..folding import Array
from .manifest import StageNames

Shape = tuple[int, ...]
SILENT = 4  # errors are raised; they need not be printed too


class Program:
    """One ONNX Runtime session a stage.

    Args:
        models: each stage's graph, serialised.
        stages: their values' names.
        in_channels, num_classes: C and K.
        threads: within one operation; None is ONNX Runtime's choice.
        masks: arrays that are inputs too, for given (B, H, W).
        joins: per stage, inputs that are several earlier values one after the other along the channels.
        optimise: whether ONNX Runtime may rewrite the graphs.
        providers: ONNX Runtime's execution providers.
    """

    def __init__(
        self,
        models: Sequence[bytes],
        stages: Sequence[StageNames],
        in_channels: int,
        num_classes: int,
        *,
        threads: int | None = None,
        masks: Callable[[int, int, int], dict[str, Array]] = lambda b, h, w: {},
        joins: Sequence[Mapping[str, tuple[str, ...]]] = (),
        optimise: bool = True,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.stages = tuple(stages)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.masks = masks
        self.joins = tuple(joins) or ({},) * len(self.stages)
        self.sessions = [_session(model, threads, optimise, providers) for model in models]
        self._sizes: dict[tuple[int, int], dict[str, Shape]] = {}

    def sizes(self, height: int, width: int) -> dict[str, Shape]:
        """The shapes of all values, without the batch, as a first run finds them."""
        if (height, width) not in self._sizes:
            known: dict[str, Array] = {
                IMAGE: np.zeros((1, self.in_channels, height, width), dtype=np.float32),
                **self.masks(1, height, width),
            }
            for session, stage, joins in zip(self.sessions, self.stages, self.joins, strict=True):
                for name, parts in joins.items():
                    known[name] = np.concatenate([known[part] for part in parts], axis=1)
                names = [stage.logits, *stage.gives]
                feed = {name: known[name] for name in (*stage.inputs, *stage.reads, *joins)}
                known.update(zip(names, session.run(names, feed), strict=True))
            self._sizes[height, width] = {name: value.shape[1:] for name, value in known.items()}
        return self._sizes[height, width]

    def live(self, stage: int) -> set[str]:
        """The state that the stages after ``stage`` read."""
        joined = {
            part for joins in self.joins[stage:] for parts in joins.values() for part in parts
        }
        return joined.union(*(later.reads for later in self.stages[stage:]))


class Slot:
    """The memory of one evaluation of ``batch`` images of one size."""

    def __init__(self, program: Program, batch: int, height: int, width: int) -> None:
        import onnxruntime as ort

        self.program = program
        self.shape = (batch, height, width)
        self.arrays: dict[str, Array] = program.masks(batch, height, width)
        self._apart: list[list[tuple[Array, list[Array]]]] = []
        self._lines: dict[tuple[str, ...], Array] = {}
        sizes = program.sizes(height, width)
        if batch == 1:
            self._lay_side_by_side(sizes)
        for name, size in sizes.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((batch, *size), dtype=np.float32)
        for joins in program.joins:
            pairs = [
                (self.arrays[n], [self.arrays[p] for p in parts]) for n, parts in joins.items()
            ]
            apart = [pair for pair in pairs if not np.shares_memory(pair[0], pair[1][0])]
            self._apart.append(apart)
        # such a value keeps the array's memory as its own, and does not keep the array alive
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self.arrays.items()
        }
        self.bindings = []
        for session, stage, joins in zip(
            program.sessions, program.stages, program.joins, strict=True
        ):
            binding = session.io_binding()
            for name in (*stage.inputs, *stage.reads, *joins):
                binding.bind_ortvalue_input(name, values[name])
            for name in (stage.logits, *stage.gives):
                binding.bind_ortvalue_output(name, values[name])
            self.bindings.append(binding)

    def _lay_side_by_side(self, sizes: Mapping[str, Shape]) -> None:
        """Give values that are joined later adjoining memory, so that joining them is no work.

        Along the channels that is possible for one image. A value that stands in several joins has
        its place in the longest; where a shorter one does not begin there, it is copied together.
        """
        joins = [item for joins in self.program.joins for item in joins.items()]
        for name, parts in sorted(joins, key=lambda item: -len(item[1])):
            if all(part not in self.arrays for part in parts):
                self.arrays[name] = whole = np.empty((1, *sizes[name]), dtype=np.float32)
                self._lines[parts] = whole
                start = 0
                for part in parts:
                    stop = start + sizes[part][0]
                    self.arrays[part] = whole[:, start:stop]
                    start = stop
            else:
                for line, whole in self._lines.items():
                    if line[: len(parts)] == parts:
                        self.arrays[name] = whole[:, : sizes[name][0]]

    def run(self, index: int, options: Any = None) -> Array:
        """Compute stage ``index`` (from 0); its logits ``[B, K]`` lie in the slot's own memory."""
        self.gather(index)
        self.program.sessions[index].run_with_iobinding(self.bindings[index], options)
        logits = self.arrays[self.program.stages[index].logits]
        return logits.reshape(len(logits), -1)[:, : self.program.num_classes]

    def gather(self, index: int) -> None:
        """Copy together what stage ``index`` reads as one and does not lie side by side."""
        for whole, parts in self._apart[index]:
            np.concatenate(parts, axis=1, out=whole)

    def take(self, source: Slot, rows: Array, stage: int) -> None:
        """Fill in what the stages after ``stage`` read, from some rows of another slot."""
        for name in (IMAGE, *self.program.live(stage)):
            np.take(source.arrays[name], rows, axis=0, out=self.arrays[name])


def _session(model: bytes, threads: int | None, optimise: bool, providers: Sequence[str]) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # every stage has threads of its own: idle ones must not keep the cores busy
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=list(providers))
