"""A network's nodes as ordinary convolutions: the reference for ``gemm.py``, and the way of other devices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets.nested.node import join
from ..nets.nested.plan import IMAGE, Exit, Layer, Node
from .program import Program


class PlainProgram:
    """A program with its weights on a device."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self.program = program
        self.device = device
        self.convolutions = {
            key: [(unit, weight.to(device), bias.to(device)) for unit, weight, bias in units]
            for key, units in program.convolutions.items()
        }
        self.heads = {
            stage: (weight.to(device), bias.to(device))
            for stage, (weight, bias) in program.heads.items()
        }

    def workspace(self, batch: int, height: int, width: int) -> PlainWorkspace:
        """One evaluation; it takes memory as it goes."""
        return PlainWorkspace(self)


class PlainWorkspace:
    """One evaluation: what each node has given, by birth."""

    nbytes = 0  # at rest

    def __init__(self, compiled: PlainProgram) -> None:
        self._compiled = compiled
        self._results: dict[str, dict[int, Tensor]] = {}
        self._inner: dict[tuple[str, int], dict[int, Tensor]] = {}

    def load(self, x: Tensor) -> None:
        """Take a batch of images ``[B, C, H, W]``."""
        self._results = {IMAGE: {0: x.detach().to(self._compiled.device, copy=True)}}
        self._inner = {}

    def run(self, index: int) -> Tensor | None:
        """Do a task: an exit's logits ``[B, K]``, None for a node."""
        task = self._compiled.program.tasks[index]
        # as in gemm.py: no caller's autocast reaches in, nothing is recorded
        with torch.no_grad(), torch.autocast(self._compiled.device.type, enabled=False):
            if task.exit is not None:
                return self._exit(task.exit)
            assert task.layer is not None
            assert task.node is not None
            self._node(task.layer, task.node)
            return None

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the images."""
        rows = rows.to(self._compiled.device)
        for slices in [*self._results.values(), *self._inner.values()]:
            for birth, tensor in slices.items():
                slices[birth] = tensor.index_select(0, rows)

    def rest(self) -> None:
        """Let go of everything."""
        self._results, self._inner = {}, {}

    def _read(self, names: tuple[str, ...], birth: int) -> Tensor:
        total: Tensor | None = None
        for name in names:
            slices = self._results[name]
            part = join([tensor for born, tensor in slices.items() if born <= birth])
            total = part if total is None else total + part
        assert total is not None
        rectify = self._compiled.program.plan.relu_reads and names != (IMAGE,)
        return total.relu() if rectify else total

    def _node(self, layer: Layer, node: Node) -> None:
        source = x = self._read(node.reads, node.birth)
        units = self._compiled.convolutions[layer.name, node.birth]
        for number, (unit, weight, bias) in enumerate(units, 1):
            x = F.conv2d(x, weight, bias, unit.stride, unit.kernel // 2)
            if number < len(units):
                slices = self._inner.setdefault((layer.name, number), {})
                slices[node.birth] = x.relu_()
                x = join(list(slices.values()))
        if node.residual == "input":
            x += source[:, node.start : node.start + node.units[-1].outputs]
        elif node.residual is not None:
            x += self._results[node.residual][node.birth]
        if layer.relu:
            x.relu_()
        if layer.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        self._results.setdefault(layer.name, {})[node.birth] = x

    def _exit(self, exit_: Exit) -> Tensor:
        weight, bias = self._compiled.heads[exit_.stage]
        features = self._read(exit_.reads, exit_.stage).mean(dim=(2, 3))
        return F.linear(features, weight, bias)
