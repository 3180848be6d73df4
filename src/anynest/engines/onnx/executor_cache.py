"""The executors of one network: graphs in block layout where possible, else standard ones."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..folding import FoldedNetwork
from ..verify import TOLERANCE, difference, random_images, torch_logits
from .executor import Executor, Shapes
from .graphs.models import model_of
from .graphs.standard import build_standard, standard_models
from .manifest import GraphInput, StageNames, image_input
from .nchwc.block_size import block_size
from .nchwc.graphs import DOMAIN, build_blocks

LAYOUTS = ("auto", "standard", "blocked")
CPU = ("CPUExecutionProvider",)
CACHED = 4  # executors for different image widths

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SerializedGraphs:
    """Standard graphs of any network.

    Attributes:
        models: each stage's graph, serialised.
        stages: their inputs and outputs.
        inputs: the network's.
        num_classes: K; None if the outputs are not class logits.
    """

    models: tuple[bytes, ...]
    stages: tuple[StageNames, ...]
    inputs: tuple[GraphInput, ...]
    num_classes: int | None


class ExecutorCache:
    """Makes executors when they are needed: blocked ones per image width, a standard one for all.

    Args:
        network: None for graphs that must run as they are.
        graphs: an export's; None builds them from the network.
        threads: within one operation; None leaves ONNX Runtime's choice.
        layout: one of ``LAYOUTS``.
        providers: ONNX Runtime's execution providers.
    """

    def __init__(
        self,
        network: FoldedNetwork | None,
        graphs: SerializedGraphs | None,
        threads: int | None,
        layout: str,
        providers: Sequence[str],
    ) -> None:
        self.network, self.graphs = network, graphs
        self.threads, self.providers = threads, tuple(providers)
        self.layout = layout
        self._lock = threading.Lock()
        self._executors: dict[int | None, Executor] = {}

    def find(self, shapes: Shapes) -> Executor:
        """The executor for inputs of these shapes, without the batch."""
        with self._lock:
            blocked = self.layout != "standard" and not self._obstacle()
            key = shapes[0][2] if blocked else None
            if key not in self._executors:
                self._executors[key] = self._make(shapes)
                while len(self._executors) > CACHED:
                    self._executors.pop(next(iter(self._executors)))
            return self._executors[key]

    def _make(self, shapes: Shapes) -> Executor:
        reason = self._obstacle()
        if self.layout == "blocked" and reason:
            raise ValueError(f"layout='blocked' is not possible: {reason}; use layout='auto'")
        if reason or self.layout == "standard":
            return self._standard(shapes)
        assert self.network is not None
        try:
            blocked = _blocked(self.network, shapes[0][2], self.threads)
            error = _difference(blocked, self.network, shapes)
            if error <= TOLERANCE:
                return blocked
            reason = f"their logits differ by {error:.1e} of the largest"
        except Exception as failure:  # ONNX Runtime's errors have no common base
            reason = " ".join(str(failure).split())
        if self.layout == "blocked":
            raise RuntimeError(f"layout='blocked' failed: {reason}; use layout='auto'")
        _log.warning("using standard graphs instead of this processor's block layout: %s", reason)
        return self._standard(shapes)

    def _obstacle(self) -> str:
        """The reason why blocked graphs are not possible, or an empty string."""
        if self.network is None:
            return "it needs the float weights of a nested network"
        if self.providers != CPU:
            return f"it needs {CPU[0]} alone"
        if block_size() == 1:
            return "this onnxruntime has no block-layout kernels on this processor"
        if self.network.in_channels >= block_size():
            return f"images must have fewer than {block_size()} channels"
        return ""

    def _standard(self, shapes: Shapes) -> Executor:
        if self.graphs is None:
            assert self.network is not None
            stages = build_standard(self.network)
            models, _ = standard_models(self.network, stages, None)
            self.graphs = SerializedGraphs(
                tuple(model.SerializeToString() for model in models),
                tuple(stage.names for stage in stages),
                (image_input(self.network.in_channels),),
                self.network.num_classes,
            )
        executor = Executor(
            self.graphs.models,
            self.graphs.stages,
            self.graphs.inputs,
            threads=self.threads,
            providers=self.providers,
        )
        error = _difference(executor, self.network, shapes) if self.network else 0.0
        if not error <= TOLERANCE:
            _log.warning(
                "onnxruntime's logits differ from PyTorch's by %.1e of the largest; consider "
                "backend='torch'",
                error,
            )
        return executor


def _blocked(network: FoldedNetwork, width: int, threads: int | None) -> Executor:
    graphs = build_blocks(network, width, block_size())
    models = [
        model_of(stage, f"stage{number}", {}, [DOMAIN]).SerializeToString()
        for number, stage in enumerate(graphs.stages, 1)
    ]
    return Executor(
        models,
        [stage.names for stage in graphs.stages],
        [image_input(network.in_channels)],
        network.num_classes,
        threads=threads,
        masks=graphs.masks,
        joins=[stage.joins for stage in graphs.stages],
        optimise=False,
    )


def _difference(executor: Executor, network: FoldedNetwork, shapes: Shapes) -> float:
    """How far an executor's logits are from the torch engine's, on random images."""
    images = random_images(2, *shapes[0])
    found = [torch.from_numpy(logits) for logits in executor.run_all(images.numpy())]
    return difference(found, torch_logits(network, images))
