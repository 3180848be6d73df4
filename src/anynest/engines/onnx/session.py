"""ONNX Runtime's engine for any network: one graph per stage, with state passed on in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...nets import AnytimeNetwork
from ..checks import check_indices, check_threads
from ..evaluation import BatchEvaluation, BatchSession, check_join, check_rows
from ..folding import FoldedNetwork
from ..inputs import NESTED_INPUTS, Inputs, InputSpec
from ..model_source import Source, resolve
from ..session import Evaluation
from ..verify import fold
from .executor import SILENT, Buffers, Executor, Shapes
from .executor_cache import CPU, LAYOUTS, ExecutorCache, SerializedGraphs
from .manifest import GraphInput, Manifest, image_input

if TYPE_CHECKING:
    from ...nets.staged import StagedModule

POOLED_COUNT = 32  # free buffers kept for later evaluations, and their size in all
POOLED_BYTES = 1 << 28
CHECKED_KINDS = 64  # types and sizes of inputs whose check is remembered
# onnxruntime looks for this key in every call, and a missing key costs it a C++ exception (28 us)
NO_GRAPH_CAPTURE = ("gpu_graph_id", "-1")


class OnnxSession(BatchSession):
    """A network in ONNX Runtime; see :class:`~anynest.engines.session.Session`.

    Weights are copied when it is opened.

    Args:
        network: the folded weights of a nested network; None for graphs that run as they are.
        graphs: an export's, or those of ``convert``; None builds them from the network.
        inputs: what ``begin`` takes, in the order of the graphs' inputs; None: a nested network's
            images.
        sizes: the least and the largest value of the inputs' sizes that may vary.
        accepts: whether the graphs stand for inputs of these sizes; None: for all within ``sizes``.
        threads: within one operation; None leaves ONNX Runtime's choice.
        layout: ``"blocked"``: graphs for this processor's kernels (docs/nchwc.md); ``"standard"``:
            the graphs of an export; ``"auto"``: blocked graphs where they are possible and have the
            standard graphs' logits.
        providers: ONNX Runtime's execution providers; other than the CPU's run standard graphs.

    Raises:
        ValueError: an unknown layout, a provider that this onnxruntime does not have, or graphs
            that it does not run.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        network: FoldedNetwork | None,
        graphs: SerializedGraphs | None = None,
        *,
        inputs: InputSpec | None = None,
        sizes: Mapping[str, tuple[int, int | None]] | None = None,
        accepts: Callable[..., bool] | None = None,
        threads: int | None = 1,
        layout: str = "auto",
        providers: Sequence[str] | None = None,
    ) -> None:
        from onnxruntime import get_available_providers

        available = get_available_providers()
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, found {layout!r}")
        for name in providers or CPU:
            if name not in available:
                raise ValueError(
                    f"providers must be among {', '.join(available)}, which this onnxruntime has, "
                    f"found {name!r}"
                )
        described = network or graphs
        assert described is not None
        self.num_classes = described.num_classes
        if graphs is not None:
            self.num_stages, self._taken = len(graphs.stages), graphs.inputs
        elif network is not None:
            self.num_stages = len(network.outputs)
            self._taken = (image_input(network.in_channels),)
        self.inputs = inputs or nested_inputs(self._taken[0])
        self.in_channels, self.input_names = self.inputs.channels, self.inputs.names
        self._ranges = dict(sizes or {})
        self._accepts = accepts
        self._executors = ExecutorCache(
            network, graphs, check_threads(threads), layout, providers or CPU
        )
        self._fitting: set[tuple[Any, ...]] = set()  # types and sizes of inputs that were checked
        self._lock = threading.Lock()
        self._free: list[Buffers] = []  # the last used first
        shapes = tuple(entry.shape for entry in self._taken)
        if network is None or not any(isinstance(n, str) for shape in shapes for n in shape):
            self._executors.find(shapes)  # type: ignore[arg-type]  # prepared now

    @classmethod
    def open(
        cls,
        source: nn.Module | str | Path | Source,
        *,
        threads: int | None = 1,
        layout: str = "auto",
        providers: Sequence[str] | None = None,
    ) -> OnnxSession:
        """A session for a network, a run folder, a weights file or an exported folder.

        Raises:
            FoldError: a network that cannot be folded; see ``anynest.engines.folding``.
        """
        found = resolve(source)
        if found.export is not None:
            from .reader import read_export

            export = read_export(found.export)
            return cls(
                export.network,
                export.graphs,
                inputs=_inputs_of(export.manifest),
                sizes=export.manifest.sizes,
                threads=threads,
                layout=layout,
                providers=providers,
            )
        network = found.network
        if not isinstance(network, AnytimeNetwork):
            assert network is not None
            size = found.info.image_size if found.info is not None else None
            return cls.of_segments(network, image_size=size, threads=threads, providers=providers)
        session = cls(fold(network), threads=threads, layout=layout, providers=providers)
        if found.info is not None:  # prepared before the first call; other sizes are accepted too
            side = found.info.image_size
            session._executors.find(((network.in_channels, side, side),))
        return session

    @classmethod
    def of_segments(
        cls,
        network: StagedModule,
        *,
        example: Mapping[str, Tensor] | None = None,
        image_size: int | tuple[int, int] | None = None,
        threads: int | None = 1,
        providers: Sequence[str] | None = None,
    ) -> OnnxSession:
        """A session for any network with ``segments``, compared with PyTorch.

        Args:
            network: any network with ``segments``.
            example: inputs by name, of any batch; None: the network's ``example_inputs``, or random
                images.
            image_size: of the random images.
            threads: within one operation; None leaves ONNX Runtime's choice.
            providers: ONNX Runtime's execution providers.

        Raises:
            ConversionError: ONNX or ONNX Runtime lacks what a stage needs, or the outputs differ.
        """
        from .export.convert import convert

        converted = convert(network, example, image_size, threads=threads)
        return cls(
            None,
            converted.graphs,
            inputs=converted.spec,
            sizes=converted.sizes,
            accepts=getattr(network, "accepts", None),
            threads=threads,
            layout="standard",
            providers=providers,
        )

    def begin(self, x: Inputs) -> OnnxEvaluation:
        """Start the evaluation of a batch."""
        self.require_open()
        values = list(self.inputs.read(x).values())
        shapes = tuple(tuple(value.shape[1:]) for value in values)
        kinds = tuple((value.dtype, shape) for value, shape in zip(values, shapes, strict=True))
        if kinds not in self._fitting:
            self._check(values, shapes)
            if len(self._fitting) >= CHECKED_KINDS:
                self._fitting.clear()
            self._fitting.add(kinds)
        buffers = self._take(self._executors.find(shapes), len(values[0]), shapes)
        for entry, value in zip(self._taken, values, strict=True):
            np.copyto(buffers.arrays[entry.name], value.cpu().numpy())
        return OnnxEvaluation(self, buffers)

    def _check(self, values: Sequence[Tensor], shapes: Shapes) -> None:
        """ValueError for inputs of types or sizes that the graphs are not for."""
        known: dict[str, int] = {}
        for name, entry, value, shape in zip(
            self.input_names, self._taken, values, shapes, strict=True
        ):
            if not np.can_cast(str(value.dtype).removeprefix("torch."), entry.dtype):
                raise ValueError(
                    f"input {name} must be {entry.dtype}, as the graphs were made for, found "
                    f"{value.dtype}: pass {name}.to(torch.{entry.dtype})"
                )
            fits = len(shape) == len(entry.shape)
            for found, size in zip(shape, entry.shape, strict=False):
                if isinstance(size, int):
                    fits = fits and found == size
                else:
                    least, most = self._ranges.get(size, (1, None))
                    fits = fits and known.setdefault(size, found) == found
                    fits = fits and least <= found and (most is None or found <= most)
            if not fits:
                raise ValueError(self._misfit(name, entry, shape))
        if self._accepts is not None and not self._accepts(*values):
            raise ValueError(
                "the graphs do not stand for inputs of these sizes, found "
                f"{', '.join(str(list(value.shape)) for value in values)}: make the network from "
                "an example of these"
            )

    def _misfit(self, name: str, entry: GraphInput, shape: tuple[int, ...]) -> str:
        if self.in_channels is not None and all(isinstance(n, int) for n in entry.shape):
            return (
                "images must be of {}x{} pixels, as the graphs were made for, found {}x{}; "
                "resize them".format(*entry.shape[1:], *shape[1:])
            )
        wanted = ", ".join(map(str, ("batch", *entry.shape)))
        limits = [
            f"{size} from {least}" + (f" to {most}" if most is not None else "")
            for size, (least, most) in self._ranges.items()
            if size in entry.shape
        ]
        return (
            f"input {name} must be [{'; '.join([wanted, *limits])}], as the graphs were made for, "
            f"found {['batch', *shape]}".replace("'", "")
        )

    def join(
        self, evaluations: Sequence[Evaluation], rows: Sequence[Tensor | None] | None = None
    ) -> OnnxEvaluation:
        """Copy the live state of all samples into buffers of their joint size."""
        self.require_open()
        parts = check_join(self, evaluations, OnnxEvaluation)
        taken = check_rows(rows, [part.buffers.batch for part in parts])
        sizes = [
            part.buffers.batch if indices is None else len(indices)
            for part, indices in zip(parts, taken, strict=True)
        ]
        first = parts[0].buffers
        buffers = self._take(first.executor, sum(sizes), first.shapes)
        start = 0
        for part, indices, size in zip(parts, taken, sizes, strict=True):
            known = None if indices is None else indices.numpy()
            buffers.put(part.buffers, slice(start, start + size), part.stage, known)
            start += size
            if indices is None:
                part.close()
        return OnnxEvaluation(self, buffers, parts[0].stage)

    def close(self) -> None:
        """Free the graphs and buffers; running evaluations may finish."""
        with self._lock:
            super().close()
            self._free.clear()
            self._executors = ExecutorCache(None, None, None, "standard", CPU)

    # -- memory -----------------------------------------------------------------------------------
    def _take(self, executor: Executor, batch: int, shapes: Shapes) -> Buffers:
        """Free buffers of these sizes, or new ones."""
        with self._lock:
            for number, buffers in enumerate(self._free):
                alike = buffers.batch == batch and buffers.shapes == shapes
                if alike and buffers.executor is executor:
                    return self._free.pop(number)
        try:
            return Buffers(executor, batch, shapes)
        except Exception as error:  # ONNX Runtime's errors have no common base
            reason = " ".join(str(error).split())
            sizes = ", ".join(str([batch, *shape]) for shape in shapes)
            raise ValueError(f"the graphs do not run inputs {sizes}: {reason}"[:500]) from error

    def _give(self, buffers: Buffers) -> None:
        """Keep buffers for a later evaluation, within the limits of the pool."""
        with self._lock:
            if self.closed:
                return
            self._free.insert(0, buffers)
            del self._free[POOLED_COUNT:]
            while sum(kept.nbytes for kept in self._free) > POOLED_BYTES:
                self._free.pop()


def nested_inputs(entry: GraphInput) -> InputSpec:
    """What a nested network takes: one input, images."""
    return InputSpec(NESTED_INPUTS, channels=int(entry.shape[0]), dtype=torch.float32)


def _inputs_of(manifest: Manifest) -> InputSpec:
    if manifest.architecture is not None:
        return nested_inputs(manifest.inputs[0])
    return InputSpec(
        tuple(entry.name for entry in manifest.inputs),
        channels=manifest.in_channels,
        dtype=floating_type(manifest.inputs),
    )


def floating_type(inputs: Sequence[GraphInput]) -> torch.dtype | None:
    """The type of the floating-point inputs, where they have a single one."""
    found = {entry.dtype for entry in inputs if entry.dtype.startswith("float")}
    return getattr(torch, found.pop()) if len(found) == 1 else None


class OnnxEvaluation(BatchEvaluation):
    """One batch; a step is one stage. See :class:`~anynest.engines.session.Evaluation`."""

    session: OnnxSession

    def __init__(self, session: OnnxSession, buffers: Buffers, stage: int = 0) -> None:
        from onnxruntime import RunOptions

        super().__init__(session, stage)
        self._buffers: Buffers | None = buffers
        self._options = RunOptions()
        self._options.log_severity_level = SILENT
        self._options.add_run_config_entry(*NO_GRAPH_CAPTURE)

    @property
    def buffers(self) -> Buffers:
        """The memory of the batch; RuntimeError if it is closed."""
        self.require_open()
        assert self._buffers is not None
        return self._buffers

    @property
    def sizes(self) -> object:
        """The inputs' sizes, and what an executor's state looks like."""
        executor = self.buffers.executor
        return self.buffers.shapes, executor.stages, executor.joins

    def step(self) -> Tensor:
        """Compute the next stage: its output."""
        self.require_stage()
        try:
            output = self.buffers.run(self.stage, self._options)
        except Exception as error:  # ONNX Runtime's errors have no common base
            if self.cancelled:
                raise RuntimeError("the evaluation was cancelled; begin another") from error
            reason = " ".join(str(error).split())
            raise RuntimeError(f"onnxruntime failed in stage {self.stage + 1}: {reason}") from error
        self.stage += 1
        return torch.from_numpy(output.copy())

    def compact(self, indices: Tensor) -> None:
        """Continue with the samples ``indices`` ``[b]`` int64 of the current batch."""
        buffers = self.buffers
        indices = check_indices(indices, buffers.batch)
        smaller = self.session._take(buffers.executor, len(indices), buffers.shapes)
        smaller.put(buffers, slice(None), self.stage, indices.numpy())
        self._buffers = smaller
        self.session._give(buffers)

    def cancel(self) -> None:
        """Interrupt the running step; may be called from any thread."""
        super().cancel()
        self._options.terminate = True

    def close(self) -> None:
        """Return the buffers to the session's pool; a second call has no effect."""
        self.closed = True
        buffers, self._buffers = self._buffers, None
        if buffers is not None:
            self.session._give(buffers)
