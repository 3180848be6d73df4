"""PyTorch's backend: a network's folded nodes, computed one after the other."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets import AnytimeNetwork
from ..nets.plan import IMAGE, Exit, Layer, Node
from .fold import folded


@dataclass(frozen=True)
class _Work:
    """A layer's node with its folded convolutions, or an exit with its head."""

    layer: Layer | None
    node: Node | None
    exit: Exit | None
    units: tuple[tuple[Tensor, Tensor], ...]
    ends: bool = False


class TorchSession:
    """A network's weights, copied and folded at opening: later training does not change them."""

    backend = "torch"

    def __init__(
        self, network: AnytimeNetwork, *, threads: int | None = None, device: str = "cpu"
    ) -> None:
        self.num_stages = network.num_stages
        self.num_classes = network.num_classes
        self.in_channels = network.in_channels
        self.threads = threads
        self.device = torch.device(device)
        self.relu_reads = network.plan.relu_reads
        self.average = network.plan.average
        self.work = self._schedule(network)
        self.closed = False

    def _schedule(self, network: AnytimeNetwork) -> tuple[_Work, ...]:
        """Nodes and exits in the order in which they are computed."""
        plan, weights = network.plan, folded(network)
        work: list[_Work] = []
        before = 0
        for stage in network.outputs:
            for layer in plan.layers:
                for node in layer.nodes:
                    if before < node.birth <= stage:
                        units = [
                            (w.float().to(self.device), b.float().to(self.device))
                            for w, b in weights[layer.name, node.birth]
                        ]
                        work.append(_Work(layer, node, None, tuple(units)))
            exits = [exit_ for exit_ in plan.exits if before < exit_.stage <= stage]
            for exit_ in exits:
                head = network.head(exit_.stage)
                units = [
                    (
                        head.weight.detach().to(self.device, torch.float32, copy=True),
                        head.bias.detach().to(self.device, torch.float32, copy=True),
                    )
                ]
                work.append(_Work(None, None, exit_, tuple(units), exit_ is exits[-1]))
            before = stage
        return tuple(work)

    def begin(self, x: Tensor) -> TorchEvaluation:
        if self.closed:
            raise RuntimeError("the session is closed; open another")
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"images must be [batch, {self.in_channels}, height, width], got {list(x.shape)}"
            )
        if x.dtype != torch.float32:
            raise ValueError(f"images must be float32, got {x.dtype}; scale and normalise them")
        return TorchEvaluation(self, x.detach().to(self.device))

    def close(self) -> None:
        self.closed = True


_thread = threading.local()


class TorchEvaluation:
    """One batch's activations, and how far it has come."""

    def __init__(self, session: TorchSession, x: Tensor) -> None:
        self.session = session
        self.num_stages = session.num_stages
        self.stage = 0
        self.position = 0
        self.open = True
        self.slices: dict[str, list[tuple[int, Tensor]]] = {IMAGE: [(0, x)]}
        self.inner: dict[str, list[list[tuple[int, Tensor]]]] = {}
        self.logits: list[Tensor] = []
        self.between = True

    def step(self) -> Tensor | None:
        if not self.open:
            raise RuntimeError("the evaluation is closed; begin another")
        if self.position == len(self.session.work):
            raise RuntimeError("every stage is finished; begin another evaluation")
        threads = self.session.threads
        if threads is not None and getattr(_thread, "count", None) != threads:
            torch.set_num_threads(threads)
            _thread.count = threads
        with torch.inference_mode():
            work = self.session.work[self.position]
            if work.exit is None:
                self._node(work)
            else:
                self._exit(work)
            self.position += 1
            self.between = work.ends
            if not work.ends:
                return None
            self.stage += 1
            if self.session.average:
                return torch.stack(self.logits).mean(dim=0)
            return self.logits[-1].clone()

    def _sum(self, names: tuple[str, ...], birth: int) -> Tensor:
        columns = [torch.cat([t for b, t in self.slices[n] if b <= birth], 1) for n in names]
        total = columns[0]
        for column in columns[1:]:
            total = total + column
        return total.relu() if self.session.relu_reads and names != (IMAGE,) else total

    def _node(self, work: _Work) -> None:
        layer, node = work.layer, work.node
        assert layer is not None
        assert node is not None
        x = source = self._sum(node.reads, node.birth)
        inner = self.inner.setdefault(layer.name, [[] for _ in node.units[1:]])
        for number, (unit, (weight, bias)) in enumerate(zip(node.units, work.units, strict=True)):
            x = F.conv2d(x, weight, bias, unit.stride, unit.kernel // 2)
            if number < len(node.units) - 1:
                inner[number].append((node.birth, x.relu_()))
                x = torch.cat([t for _, t in inner[number]], 1)
        if node.residual == "input":
            x = x + source[:, node.start :]
        elif node.residual is not None:
            x = x + next(t for b, t in self.slices[node.residual] if b == node.birth)
        x = x.relu() if layer.relu else x
        if layer.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        self.slices.setdefault(layer.name, []).append((node.birth, x))

    def _exit(self, work: _Work) -> None:
        exit_ = work.exit
        assert exit_ is not None
        ((weight, bias),) = work.units
        features = self._sum(exit_.reads, exit_.stage).mean(dim=(2, 3))
        self.logits.append(F.linear(features, weight, bias))

    def keep(self, rows: Tensor) -> None:
        if not self.between:
            raise ValueError("samples may leave between stages alone; finish the stage first")
        size = self.slices[IMAGE][0][1].shape[0]
        if rows.dim() != 1 or rows.dtype != torch.int64 or not len(rows):
            raise ValueError(
                f"rows must be a list of at least one int64 index, got {list(rows.shape)} {rows.dtype}"
            )
        if int(rows.min()) < 0 or int(rows.max()) >= size:
            raise ValueError(f"rows must be from 0 to {size - 1}, got {rows.tolist()}")
        with torch.inference_mode():
            rows = rows.to(self.session.device)
            for name, slices in self.slices.items():
                self.slices[name] = [(birth, tensor[rows]) for birth, tensor in slices]
            for parts in self.inner.values():
                for part in parts:
                    part[:] = [(birth, tensor[rows]) for birth, tensor in part]
            self.logits = [logits[rows] for logits in self.logits]

    def cancel(self) -> None:
        """Nothing: a node is short, and the next one is not begun unless it is asked for."""

    def close(self) -> None:
        self.open = False
        self.slices, self.inner, self.logits = {}, {}, []
