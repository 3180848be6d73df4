"""Which graphs a session runs: the standard ones, or ones made for this processor's kernels."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...nets.nested.plan import IMAGE
from ..folding import Array, FoldedNetwork
from .executor import Program, Slot
from .graphs.models import model_of
from .graphs.standard import stage_models, stage_pieces
from .manifest import StageNames
from .nchwc.block_size import block_size
from .nchwc.graphs import DOMAIN, BlockedEmitter, Mask
from .nchwc.layout_choice import choose_layout
from .nchwc.space_to_depth import mask_row

LAYOUTS = ("auto", "standard", "blocked")
CPU = ("CPUExecutionProvider",)
TOLERANCE = 1e-3  # of the blocked graphs against the standard ones, relative to the largest logit
KEPT = 4  # programs for different image sizes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graphs:
    """Standard graphs, serialised, and their values' names."""

    models: tuple[bytes, ...]
    stages: tuple[StageNames, ...]


class Programs:
    """The programs of one network, made as they are needed.

    Args:
        network: None where the graphs are all there is (quantised ones).
        graphs: an export's; None makes them of the network.
        in_channels, num_classes: C and K.
        threads: within one operation; None is ONNX Runtime's choice.
        layout: one of ``LAYOUTS``.
        providers: ONNX Runtime's execution providers.
    """

    def __init__(
        self,
        network: FoldedNetwork | None,
        graphs: Graphs | None,
        in_channels: int,
        num_classes: int,
        threads: int | None,
        layout: str,
        providers: Sequence[str],
    ) -> None:
        self.network, self.graphs = network, graphs
        self.in_channels, self.num_classes = in_channels, num_classes
        self.threads, self.providers = threads, tuple(providers)
        self.layout = layout
        self._lock = threading.Lock()
        self._made: dict[int | None, Program] = {}

    def find(self, height: int, width: int) -> Program:
        """The program for images of a size; made at the first call."""
        with self._lock:
            key = width if self.layout != "standard" else None
            if key not in self._made:
                self._made[key] = self._make(height, width)
                while len(self._made) > KEPT:
                    self._made.pop(next(iter(self._made)))
            return self._made[key]

    def _make(self, height: int, width: int) -> Program:
        reason = self._obstacle()
        if self.layout == "blocked" and reason:
            raise ValueError(f"layout='blocked' cannot be had: {reason}; use layout='auto'")
        if reason or self.layout == "standard":
            return self._standard(optimise=True)
        assert self.network is not None
        try:
            blocked = _blocked(self.network, width, self.threads)
            error = _difference(blocked, self._standard(optimise=False), height, width)
            if error <= TOLERANCE:
                return blocked
            reason = f"their logits differ by {error:.1e} of the largest"
        except Exception as failure:  # ONNX Runtime's own have no common base
            if self.layout == "blocked":
                raise RuntimeError(
                    f"layout='blocked' failed: {' '.join(str(failure).split())}"
                ) from failure
            reason = " ".join(str(failure).split())
        if self.layout == "blocked":
            raise RuntimeError(f"layout='blocked' failed: {reason}; use layout='auto'")
        _log.warning(
            "graphs in this processor's layout are not used, but standard ones: %s", reason
        )
        return self._standard(optimise=True)

    def _obstacle(self) -> str:
        """Why there can be no blocked graphs, or nothing."""
        if self.network is None:
            return "quantised graphs run as they are"
        if self.providers != CPU:
            return f"it is for {CPU[0]} alone"
        if block_size() == 1:
            return "this onnxruntime has no kernels in blocks of channels on this processor"
        if self.in_channels >= block_size():
            return f"images must have fewer than {block_size()} channels"
        return ""

    def _standard(self, optimise: bool) -> Program:
        if self.graphs is None:
            assert self.network is not None
            pieces = stage_pieces(self.network)
            models, _ = stage_models(self.network, pieces, None)
            serialised = tuple(model.SerializeToString() for model in models)
            self.graphs = Graphs(serialised, tuple(piece.names for piece in pieces))
        return Program(
            self.graphs.models,
            self.graphs.stages,
            self.in_channels,
            self.num_classes,
            threads=self.threads,
            optimise=optimise,
            providers=self.providers,
        )


def _blocked(network: FoldedNetwork, width: int, threads: int | None) -> Program:
    block = block_size()
    emitter = BlockedEmitter(*choose_layout(network, width, block), width, block)
    pieces = emitter.emit()
    models = [
        model_of(piece, f"stage{number}", {}, [DOMAIN]).SerializeToString()
        for number, piece in enumerate(pieces, 1)
    ]
    stages = [piece.names for piece in pieces]
    masks = functools.partial(_masks, tuple(emitter.masks.values()), block)
    return Program(
        models,
        stages,
        network.in_channels,
        network.num_classes,
        threads=threads,
        masks=masks,
        joins=[piece.joins for piece in pieces],
        optimise=False,
    )


def _masks(
    masks: Sequence[Mask], block: int, batch: int, height: int, width: int
) -> dict[str, Array]:
    """The arrays of all masks in blocked layout, ``[B, lanes, H', positions]``."""
    arrays: dict[str, Array] = {}
    for mask in masks:
        high, wide = height, width
        for _ in range(mask.level):
            high, wide = -(-high // 2), -(-wide // 2)
        row = mask_row(mask.channels, mask.layout, wide)
        blocks = -(-len(row) // block)
        lanes = np.zeros((blocks * block, row.shape[1]), dtype=np.float32)
        lanes[: len(row)] = row
        cut = lanes.reshape(blocks, block, 1, -1).transpose(0, 2, 3, 1)
        whole = np.broadcast_to(cut, (batch, blocks, high, row.shape[1], block))
        shape = (batch, blocks * block, high, row.shape[1])
        arrays[mask.name] = np.ascontiguousarray(whole).reshape(shape)
    return arrays


def _difference(one: Program, other: Program, height: int, width: int) -> float:
    """How far two programs' logits lie apart on random images, relative to the largest logit."""
    images = np.random.default_rng(0).standard_normal((2, one.in_channels, height, width))
    answers = []
    for program in (one, other):
        slot = Slot(program, 2, height, width)
        np.copyto(slot.arrays[IMAGE], images, casting="same_kind")
        answers.append([slot.run(index).copy() for index in range(len(program.stages))])
    worst = [
        np.abs(a - b).max() / max(np.abs(b).max(), 1e-6) for a, b in zip(*answers, strict=True)
    ]
    return float(max(worst))
