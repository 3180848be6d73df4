"""ONNX Runtime's engine: one graph per stage, with state passed on in place."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...nets.nested.plan import IMAGE
from ..checks import check_indices, check_threads
from ..evaluation import BatchEvaluation, check_join
from ..folding import FoldedNetwork
from ..inputs import NESTED_INPUTS, Inputs, InputSpec
from ..model_source import Source, resolve
from ..session import Evaluation
from ..verify import fold
from .executor import SILENT, Buffers, Executor
from .executor_cache import CPU, LAYOUTS, ExecutorCache, SerializedGraphs

POOLED_COUNT = 4  # free buffers kept for later evaluations, and their size in all
POOLED_BYTES = 1 << 28


class OnnxSession:
    """A network in ONNX Runtime; see :class:`~anynest.engines.session.Session`.

    Weights are copied when it is opened.

    Args:
        network: its folded weights; None for graphs that run as they are (quantised ones).
        graphs: an export's; None builds them from the network.
        image_size: (H, W) that the graphs were made for; None accepts any size.
        threads: within one operation; None leaves ONNX Runtime's choice.
        layout: ``"blocked"``: graphs for this processor's kernels (docs/nchwc.md); ``"standard"``:
            the graphs of an export; ``"auto"``: blocked graphs where they are possible and have the
            standard graphs' logits.
        providers: ONNX Runtime's execution providers; other than the CPU's run standard graphs.

    Raises:
        ValueError: an unknown layout, or a provider that this onnxruntime does not have.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        network: FoldedNetwork | None,
        graphs: SerializedGraphs | None = None,
        *,
        image_size: tuple[int, int] | None = None,
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
        self.num_stages = len(network.outputs if network else graphs.stages if graphs else ())
        self.in_channels, self.num_classes = described.in_channels, described.num_classes
        self.inputs = InputSpec(NESTED_INPUTS, channels=self.in_channels, dtype=torch.float32)
        self.input_names = self.inputs.names
        self.image_size = image_size
        self._executors = ExecutorCache(
            network, graphs, check_threads(threads), layout, providers or CPU
        )
        self._lock = threading.Lock()
        self._free: list[Buffers] = []  # the last used first
        self._closed = False
        if image_size is not None:
            self._executors.find(*image_size)

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
                image_size=export.manifest.image_size,
                threads=threads,
                layout=layout,
                providers=providers,
            )
        network = found.require_nested("graphs of folded weights", "use backend='torch'")
        session = cls(fold(network), threads=threads, layout=layout, providers=providers)
        if found.info is not None:  # prepared before the first call; other sizes are accepted too
            session._executors.find(found.info.image_size, found.info.image_size)
        return session

    def begin(self, x: Inputs) -> OnnxEvaluation:
        """Start the evaluation of images ``[B, C, H, W]``, float32 and normalised."""
        self._require_open()
        (images,) = self.inputs.read(x).values()
        batch, _, height, width = images.shape
        if self.image_size is not None and (height, width) != self.image_size:
            raise ValueError(
                "images must be of {}x{} pixels, as the export was made for, found {}x{}; "
                "resize them".format(*self.image_size, height, width)
            )
        buffers = self._take(self._executors.find(height, width), batch, height, width)
        np.copyto(buffers.arrays[IMAGE], images.cpu().numpy())
        return OnnxEvaluation(self, buffers)

    def join(self, evaluations: Sequence[Evaluation]) -> OnnxEvaluation:
        """Copy the live state of all evaluations into buffers of their joint size."""
        self._require_open()
        parts = check_join(self, evaluations, OnnxEvaluation)
        first = parts[0].buffers
        batch = sum(part.buffers.shape[0] for part in parts)
        buffers = self._take(first.executor, batch, *first.shape[1:])
        start = 0
        for part in parts:
            buffers.put(part.buffers, start, part.stage)
            start += part.buffers.shape[0]
            part.close()
        return OnnxEvaluation(self, buffers, parts[0].stage)

    def close(self) -> None:
        """Free the graphs and buffers; running evaluations may finish."""
        with self._lock:
            self._closed = True
            self._free.clear()
            self._executors = ExecutorCache(None, None, None, "standard", CPU)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the session is closed; open another")

    # -- memory -----------------------------------------------------------------------------------
    def _take(self, executor: Executor, batch: int, height: int, width: int) -> Buffers:
        """Free buffers of these sizes, or new ones."""
        with self._lock:
            for number, buffers in enumerate(self._free):
                if buffers.executor is executor and buffers.shape == (batch, height, width):
                    return self._free.pop(number)
        return Buffers(executor, batch, height, width)

    def _give(self, buffers: Buffers) -> None:
        """Keep buffers for a later evaluation, within the limits of the pool."""
        with self._lock:
            if self._closed:
                return
            self._free.insert(0, buffers)
            del self._free[POOLED_COUNT:]
            while sum(kept.nbytes for kept in self._free) > POOLED_BYTES:
                self._free.pop()


class OnnxEvaluation(BatchEvaluation):
    """One batch; a step is one stage. See :class:`~anynest.engines.session.Evaluation`."""

    session: OnnxSession

    def __init__(self, session: OnnxSession, buffers: Buffers, stage: int = 0) -> None:
        from onnxruntime import RunOptions

        super().__init__(session, stage)
        self._buffers: Buffers | None = buffers
        self._options = RunOptions()
        self._options.log_severity_level = SILENT

    @property
    def buffers(self) -> Buffers:
        """The memory of the batch; RuntimeError if it is closed."""
        self.require_open()
        assert self._buffers is not None
        return self._buffers

    @property
    def sizes(self) -> object:
        """The image's size, and what an executor's state looks like."""
        executor = self.buffers.executor
        return self.buffers.shape[1:], executor.stages, executor.joins

    def step(self) -> Tensor:
        """Compute the next stage: its logits ``[B, K]``."""
        self.require_stage()
        try:
            logits = self.buffers.run(self.stage, self._options)
        except Exception as error:  # ONNX Runtime's errors have no common base
            if self.cancelled:
                raise RuntimeError("the evaluation was cancelled; begin another") from error
            reason = " ".join(str(error).split())
            raise RuntimeError(f"onnxruntime failed in stage {self.stage + 1}: {reason}") from error
        self.stage += 1
        return torch.from_numpy(logits.copy())

    def compact(self, indices: Tensor) -> None:
        """Continue with the samples ``indices`` ``[b]`` int64 of the current batch."""
        buffers = self.buffers
        batch, height, width = buffers.shape
        indices = check_indices(indices, batch)
        smaller = self.session._take(buffers.executor, len(indices), height, width)
        smaller.take(buffers, indices.numpy(), self.stage)
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
