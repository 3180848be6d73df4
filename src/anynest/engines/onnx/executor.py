"""The stages of a network in ONNX Runtime, and the memory through which they pass on state.

Each evaluation has ``Buffers``: arrays for the inputs, the state and the outputs, bound once to
every stage's inputs and outputs. A step is then one call; nothing is allocated, copied or
converted between stages. A value that several stages read, or pass on, has one array.

Legend: B batch, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..folding import Array
from .manifest import GraphInput, StageNames

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]  # of all inputs, without the batch
CACHED_SIZES = 16  # input sizes for which the layouts of all values are kept
SILENT = 4  # log level: errors are raised, not printed too


class Layout(NamedTuple):
    """Shape without the batch, and type of a value."""

    shape: Shape
    dtype: Any


class Executor:
    """One ONNX Runtime session per stage.

    Args:
        models: each stage's graph, serialised.
        stages: their inputs and outputs.
        inputs: the network's.
        num_classes: K, where logits have more columns or dimensions; None: outputs are as they are.
        threads: within one operation; None leaves ONNX Runtime's choice.
        masks: constant inputs, for given (B, H, W); None for a network without.
        joins: per stage, inputs that are several earlier values, concatenated along the channels.
        optimise: whether ONNX Runtime may rewrite the graphs.
        providers: ONNX Runtime's execution providers.

    Raises:
        RuntimeError: ONNX Runtime refuses a graph.
    """

    def __init__(
        self,
        models: Sequence[bytes],
        stages: Sequence[StageNames],
        inputs: Sequence[GraphInput],
        num_classes: int | None = None,
        *,
        threads: int | None = None,
        masks: Callable[[int, int, int], dict[str, Array]] | None = None,
        joins: Sequence[Mapping[str, tuple[str, ...]]] = (),
        optimise: bool = True,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.stages = tuple(stages)
        self.inputs, self.num_classes = tuple(inputs), num_classes
        self._masks = masks
        self.joins = tuple(joins) or ({},) * len(self.stages)
        self.sessions = []
        for number, model in enumerate(models, 1):
            try:
                self.sessions.append(_session(model, threads, optimise, providers))
            except Exception as error:  # ONNX Runtime's errors have no common base
                reason = " ".join(str(error).split())[:300]
                raise RuntimeError(f"onnxruntime cannot load stage {number}: {reason}") from error
        self._layouts: dict[Shapes, dict[str, Layout]] = {}

    def masks(self, batch: int, shapes: Shapes) -> dict[str, Array]:
        """The constant inputs for images of these shapes."""
        return self._masks(batch, *shapes[0][1:]) if self._masks is not None else {}

    def layouts(self, shapes: Shapes) -> dict[str, Layout]:
        """Of all values, from a run on one sample of zeros."""
        found = self._layouts.get(shapes)
        if found is None:
            known = self.masks(1, shapes)
            for entry, shape in zip(self.inputs, shapes, strict=True):
                known[entry.name] = np.zeros((1, *shape), dtype=entry.dtype)
            for session, stage, joins in zip(self.sessions, self.stages, self.joins, strict=True):
                for name, parts in joins.items():
                    known[name] = np.concatenate([known[part] for part in parts], axis=1)
                names = [stage.logits, *stage.gives]
                feed = {name: known[name] for name in (*stage.inputs, *stage.reads, *joins)}
                known.update(zip(names, session.run(names, feed), strict=True))
            found = {name: Layout(value.shape[1:], value.dtype) for name, value in known.items()}
            for old in list(self._layouts)[: -CACHED_SIZES + 1]:
                self._layouts.pop(old, None)
            self._layouts[shapes] = found
        return found

    def live(self, stage: int) -> set[str]:
        """The inputs and the state that the stages after ``stage`` read."""
        found = {part for joins in self.joins[stage:] for parts in joins.values() for part in parts}
        own = {entry.name for entry in self.inputs}
        for later in self.stages[stage:]:
            found.update(later.reads, own.intersection(later.inputs))
        return found

    def run_all(self, *inputs: Array) -> list[Array]:
        """Every stage's output of a batch."""
        buffers = Buffers(self, len(inputs[0]), tuple(value.shape[1:] for value in inputs))
        for entry, value in zip(self.inputs, inputs, strict=True):
            np.copyto(buffers.arrays[entry.name], value, casting="same_kind")
        return [buffers.run(index).copy() for index in range(len(self.stages))]


class Buffers:
    """The memory of one evaluation.

    Args:
        executor: runs the stages.
        batch: B.
        shapes: of the inputs, without the batch.
    """

    def __init__(self, executor: Executor, batch: int, shapes: Shapes) -> None:
        import onnxruntime as ort

        self.executor = executor
        self.batch, self.shapes = batch, shapes
        self.arrays: dict[str, Array] = executor.masks(batch, shapes)
        self._copied: list[list[tuple[Array, list[Array]]]] = []
        self._adjacent: dict[tuple[str, ...], Array] = {}
        layouts = executor.layouts(shapes)
        if batch == 1:
            self._place_adjacent(layouts)
        for name, layout in layouts.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((batch, *layout.shape), dtype=layout.dtype)
        for joins in executor.joins:
            pairs = [
                (self.arrays[n], [self.arrays[p] for p in parts]) for n, parts in joins.items()
            ]
            copied = [pair for pair in pairs if not np.shares_memory(pair[0], pair[1][0])]
            self._copied.append(copied)
        # those of joined values count once more where they are views
        self.nbytes = sum(array.nbytes for array in self.arrays.values())
        # an OrtValue uses the array's memory and does not keep the array alive
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self.arrays.items()
        }
        self.bindings, self.outputs = [], []
        for session, stage, joins in zip(
            executor.sessions, executor.stages, executor.joins, strict=True
        ):
            binding = session.io_binding()
            for name in (*stage.inputs, *stage.reads, *joins):
                binding.bind_ortvalue_input(name, values[name])
            for name in (stage.logits, *stage.gives):
                binding.bind_ortvalue_output(name, values[name])
            self.bindings.append(binding)
            output = self.arrays[stage.logits]
            if executor.num_classes is not None:
                output = output.reshape(batch, -1)[:, : executor.num_classes]
            self.outputs.append(output)

    def _place_adjacent(self, layouts: Mapping[str, Layout]) -> None:
        """Place values that are joined later side by side, so that joining them copies nothing.

        Along the channels this is possible for one image only. A value in several joins is placed
        in the longest; a shorter join that does not start there is copied (``gather``).
        """
        joins = [item for joins in self.executor.joins for item in joins.items()]
        for name, parts in sorted(joins, key=lambda item: -len(item[1])):
            if all(part not in self.arrays for part in parts):
                layout = layouts[name]
                self.arrays[name] = whole = np.empty((1, *layout.shape), dtype=layout.dtype)
                self._adjacent[parts] = whole
                start = 0
                for part in parts:
                    stop = start + layouts[part].shape[0]
                    self.arrays[part] = whole[:, start:stop]
                    start = stop
            else:
                for line, whole in self._adjacent.items():
                    if line[: len(parts)] == parts:
                        self.arrays[name] = whole[:, : layouts[name].shape[0]]

    def run(self, index: int, options: Any = None) -> Array:
        """Compute stage ``index`` (from 0).

        Returns:
            Its output, such as logits ``[B, K]``, a view of the buffers.
        """
        self.gather(index)
        self.executor.sessions[index].run_with_iobinding(self.bindings[index], options)
        return self.outputs[index]

    def gather(self, index: int) -> None:
        """Concatenate the joined inputs of stage ``index`` that are not adjacent in memory."""
        for whole, parts in self._copied[index]:
            np.concatenate(parts, axis=1, out=whole)

    def put(self, source: Buffers, rows: slice, stage: int, indices: Array | None = None) -> None:
        """Copy what the stages after ``stage`` read from other buffers to ``rows`` of these.

        Args:
            source: the other buffers.
            rows: as many as are copied.
            stage: the newest finished stage.
            indices: the samples to copy, in their new order; None for all.
        """
        for name in self.executor.live(stage):
            target, array = self.arrays[name][rows], source.arrays[name]
            if indices is None:
                np.copyto(target, array)
            else:
                np.take(array, indices, axis=0, out=target, mode="clip")  # "raise" copies twice


def _session(model: bytes, threads: int | None, optimise: bool, providers: Sequence[str]) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # every stage has threads of its own; idle ones must not occupy the cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=list(providers))
