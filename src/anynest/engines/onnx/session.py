"""ONNX Runtime's backend: one graph a stage, the state handed from one to the next where it lies."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...nets import AnytimeNetwork
from ...nets.nested.plan import IMAGE
from ..checks import check_images, check_indices
from ..folding import FoldedNetwork
from ..model_source import Source, resolve
from .executor import SILENT, Program, Slot
from .executors import CPU, LAYOUTS, Graphs, Programs

FREE_SLOTS = 4  # of evaluations that are closed, kept for the next ones


class OnnxSession:
    """A network's stages in ONNX Runtime. Weights are copied at opening.

    Args:
        network: its folded weights; None for graphs that run as they are (quantised ones).
        graphs: an export's; None makes them of the network.
        in_channels, num_classes: C and K.
        image_size: (H, W) that the graphs were made for; None takes any size.
        threads: within one operation; None is ONNX Runtime's choice.
        layout: ``"blocked"``: graphs made for this processor's kernels; ``"standard"``: those that an
            export holds; ``"auto"``: blocked where it can be had and gives the standard graphs' logits.
        providers: ONNX Runtime's execution providers; others than the CPU's have the standard layout.

    Raises:
        ValueError: an option that this onnxruntime does not have; onnxruntime is not installed.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        network: FoldedNetwork | None,
        graphs: Graphs | None = None,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int] | None = None,
        threads: int | None = None,
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
                    f"providers must be of {', '.join(available)}, as this onnxruntime has them, "
                    f"found {name!r}"
                )
        self.num_stages = len(network.outputs) if network else len(graphs.stages if graphs else ())
        self.in_channels, self.num_classes = in_channels, num_classes
        self.image_size = image_size
        self._programs = Programs(
            network, graphs, in_channels, num_classes, threads, layout, tuple(providers or CPU)
        )
        self._lock = threading.Lock()
        self._free: list[Slot] = []
        self._closed = False
        if image_size is not None:
            self._programs.find(*image_size)

    @classmethod
    def open(
        cls,
        source: AnytimeNetwork | str | Path | Source,
        *,
        threads: int | None = None,
        layout: str = "auto",
        providers: Sequence[str] | None = None,
    ) -> OnnxSession:
        """A session for a network, a run folder, a weights file or an exported folder."""
        found = resolve(source)
        if found.export is not None:
            from .reader import read_export

            export = read_export(found.export)
            return cls(
                export.network,
                export.graphs,
                in_channels=export.manifest.in_channels,
                num_classes=export.manifest.num_classes,
                image_size=export.manifest.image_size,
                threads=threads,
                layout=layout,
                providers=providers,
            )
        assert found.network is not None
        network = FoldedNetwork.of(found.network)
        size = (found.info.image_size,) * 2 if found.info else None
        session = cls(
            network,
            in_channels=network.in_channels,
            num_classes=network.num_classes,
            threads=threads,
            layout=layout,
            providers=providers,
        )
        if size is not None:  # not a limit: the graphs for it are made before they are asked for
            session._programs.find(*size)
        return session

    def begin(self, x: Tensor) -> OnnxEvaluation:
        if self._closed:
            raise RuntimeError("the session is closed; open another")
        check_images(x, self.in_channels)
        batch, _, height, width = x.shape
        if self.image_size is not None and (height, width) != self.image_size:
            raise ValueError(
                "images must be of {}x{} pixels, as the export was made for, found {}x{}; resize them".format(
                    *self.image_size, height, width
                )
            )
        slot = self._take(self._programs.find(height, width), batch, height, width)
        np.copyto(slot.arrays[IMAGE], x.detach().cpu().numpy())
        return OnnxEvaluation(self, slot)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._free.clear()
            self._programs = Programs(None, None, 0, 0, None, "standard", CPU)

    # -- memory ---------------------------------------------------------------------------------------
    def _take(self, program: Program, batch: int, height: int, width: int) -> Slot:
        """A free slot of these sizes, or a new one."""
        with self._lock:
            for number, slot in enumerate(self._free):
                if slot.program is program and slot.shape == (batch, height, width):
                    return self._free.pop(number)
        return Slot(program, batch, height, width)

    def _give(self, slot: Slot) -> None:
        with self._lock:
            if not self._closed:
                self._free.insert(0, slot)
                del self._free[FREE_SLOTS:]


class OnnxEvaluation:
    """One batch on its way; a step is one stage."""

    def __init__(self, session: OnnxSession, slot: Slot) -> None:
        self.num_stages = session.num_stages
        self.stage = 0
        self._session = session
        self._slot: Slot | None = slot
        from onnxruntime import RunOptions

        self._options = RunOptions()
        self._options.log_severity_level = SILENT
        self._cancelled = False

    def step(self) -> Tensor:
        slot = self._require_open()
        if self.stage == self.num_stages:
            raise RuntimeError("every stage is finished; begin another evaluation")
        try:
            logits = slot.run(self.stage, self._options)
        except Exception as error:  # ONNX Runtime's own have no common base
            if self._cancelled:
                raise RuntimeError("the evaluation was cancelled; begin another") from error
            reason = " ".join(str(error).split())
            raise RuntimeError(f"onnxruntime failed in stage {self.stage + 1}: {reason}") from error
        self.stage += 1
        return torch.from_numpy(logits.copy())

    def compact(self, indices: Tensor) -> None:
        slot = self._require_open()
        batch, height, width = slot.shape
        indices = check_indices(indices, batch)
        smaller = self._session._take(slot.program, len(indices), height, width)
        smaller.take(slot, indices.numpy(), self.stage)
        self._slot = smaller
        self._session._give(slot)

    def cancel(self) -> None:
        self._cancelled = True
        self._options.terminate = True

    def close(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._session._give(slot)

    def _require_open(self) -> Slot:
        if self._slot is None:
            raise RuntimeError("the evaluation is closed; begin another")
        return self._slot
