"""The stages of a network in ONNX Runtime, and the memory through which they pass on state.

Each evaluation has ``Buffers``: arrays for the images, the state and the logits, bound once to
every stage's inputs and outputs. A step is then one call; nothing is allocated, copied or
converted between stages.

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
CACHED_SIZES = 16  # image sizes whose shapes are kept
SILENT = 4  # log level: errors are raised, not printed too


class Executor:
    """One ONNX Runtime session per stage.

    Args:
        models: each stage's graph, serialised.
        stages: their inputs and outputs.
        in_channels: C.
        num_classes: K.
        threads: within one operation; None leaves ONNX Runtime's choice.
        masks: constant inputs, for given (B, H, W).
        joins: per stage, inputs that are several earlier values, concatenated along the channels.
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
        """The shapes of all values without the batch, from a run on one image."""
        found = self._sizes.get((height, width))
        if found is None:
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
            found = {name: value.shape[1:] for name, value in known.items()}
            for old in list(self._sizes)[: -CACHED_SIZES + 1]:
                self._sizes.pop(old, None)
            self._sizes[height, width] = found
        return found

    def live(self, stage: int) -> set[str]:
        """The state that the stages after ``stage`` read."""
        joined = {
            part for joins in self.joins[stage:] for parts in joins.values() for part in parts
        }
        return joined.union(*(later.reads for later in self.stages[stage:]))

    def run_all(self, images: Array) -> list[Array]:
        """Every stage's logits ``[B, K]`` of images ``[B, C, H, W]``."""
        buffers = Buffers(self, len(images), *images.shape[2:])
        np.copyto(buffers.arrays[IMAGE], images, casting="same_kind")
        return [buffers.run(index).copy() for index in range(len(self.stages))]


class Buffers:
    """The memory of one evaluation of ``batch`` images of one size."""

    def __init__(self, executor: Executor, batch: int, height: int, width: int) -> None:
        import onnxruntime as ort

        self.executor = executor
        self.shape = (batch, height, width)
        self.arrays: dict[str, Array] = executor.masks(batch, height, width)
        self._copied: list[list[tuple[Array, list[Array]]]] = []
        self._adjacent: dict[tuple[str, ...], Array] = {}
        sizes = executor.sizes(height, width)
        if batch == 1:
            self._place_adjacent(sizes)
        for name, size in sizes.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((batch, *size), dtype=np.float32)
        for joins in executor.joins:
            pairs = [
                (self.arrays[n], [self.arrays[p] for p in parts]) for n, parts in joins.items()
            ]
            copied = [pair for pair in pairs if not np.shares_memory(pair[0], pair[1][0])]
            self._copied.append(copied)
        # an OrtValue uses the array's memory and does not keep the array alive
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self.arrays.items()
        }
        self.bindings = []
        for session, stage, joins in zip(
            executor.sessions, executor.stages, executor.joins, strict=True
        ):
            binding = session.io_binding()
            for name in (*stage.inputs, *stage.reads, *joins):
                binding.bind_ortvalue_input(name, values[name])
            for name in (stage.logits, *stage.gives):
                binding.bind_ortvalue_output(name, values[name])
            self.bindings.append(binding)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; those of joined values count once more where they are views."""
        return sum(array.nbytes for array in self.arrays.values())

    def _place_adjacent(self, sizes: Mapping[str, Shape]) -> None:
        """Place values that are joined later side by side, so that joining them copies nothing.

        Along the channels this is possible for one image only. A value in several joins is placed
        in the longest; a shorter join that does not start there is copied (``gather``).
        """
        joins = [item for joins in self.executor.joins for item in joins.items()]
        for name, parts in sorted(joins, key=lambda item: -len(item[1])):
            if all(part not in self.arrays for part in parts):
                self.arrays[name] = whole = np.empty((1, *sizes[name]), dtype=np.float32)
                self._adjacent[parts] = whole
                start = 0
                for part in parts:
                    stop = start + sizes[part][0]
                    self.arrays[part] = whole[:, start:stop]
                    start = stop
            else:
                for line, whole in self._adjacent.items():
                    if line[: len(parts)] == parts:
                        self.arrays[name] = whole[:, : sizes[name][0]]

    def run(self, index: int, options: Any = None) -> Array:
        """Compute stage ``index`` (from 0).

        Returns:
            Its logits ``[B, K]``, a view of the buffers.
        """
        self.gather(index)
        self.executor.sessions[index].run_with_iobinding(self.bindings[index], options)
        logits = self.arrays[self.executor.stages[index].logits]
        return logits.reshape(len(logits), -1)[:, : self.executor.num_classes]

    def gather(self, index: int) -> None:
        """Concatenate the joined inputs of stage ``index`` that are not adjacent in memory."""
        for whole, parts in self._copied[index]:
            np.concatenate(parts, axis=1, out=whole)

    def take(self, source: Buffers, indices: Array, stage: int) -> None:
        """Copy what the stages after ``stage`` read, for some samples of other buffers."""
        for name in (IMAGE, *self.executor.live(stage)):
            np.take(source.arrays[name], indices, axis=0, out=self.arrays[name])

    def put(self, source: Buffers, start: int, stage: int) -> None:
        """Copy what the stages after ``stage`` read, from other buffers to the rows at ``start``."""
        rows = slice(start, start + source.shape[0])
        for name in (IMAGE, *self.executor.live(stage)):
            np.copyto(self.arrays[name][rows], source.arrays[name])


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
