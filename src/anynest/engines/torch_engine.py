"""PyTorch's engine: one convolution per node unit, stoppable between any two nodes.

It is the reference for the ONNX graphs, and the engine of devices other than the CPU. Weights are
copied when a session is opened, with batch norms folded in: later training changes nothing.
A network in training mode is served as in eval mode, by its running statistics.

Legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets.nested.node import join
from ..nets.nested.plan import IMAGE, Exit, Layer, Node, Plan
from ..store.hardware import find_device
from .checks import check_indices, check_threads
from .evaluation import (
    BatchEvaluation,
    BatchSession,
    check_join,
    check_rows,
    concatenate,
    use_threads,
)
from .folding import FoldedNetwork
from .inputs import NESTED_INPUTS, Inputs, InputSpec
from .session import Evaluation


@dataclass(frozen=True)
class Task:
    """One step: a node of a layer, or an exit.

    Attributes:
        stage: the session's stage (from 1) that needs it first.
        layer: the node's layer; None for an exit.
        node: the node; None for an exit.
        exit: the exit; None for a node.
        last: whether it finishes the stage.
    """

    stage: int
    layer: Layer | None = None
    node: Node | None = None
    exit: Exit | None = None
    last: bool = False


def schedule(plan: Plan, outputs: tuple[int, ...]) -> tuple[Task, ...]:
    """Every node once (N2), when the first output needs it (N4), then that stage's exits."""
    tasks: list[Task] = []
    before = 0
    for number, stage in enumerate(outputs, 1):
        for layer in plan.layers:
            for node in layer.nodes:
                if before < node.birth <= stage:
                    tasks.append(Task(number, layer, node))
        exits = [exit_ for exit_ in plan.exits if before < exit_.stage <= stage]
        tasks += [Task(number, exit=exit_, last=exit_ is exits[-1]) for exit_ in exits]
        before = stage
    return tuple(tasks)


class TorchSession(BatchSession):
    """A network in PyTorch; see :class:`~anynest.engines.session.Session`.

    Args:
        network: its folded weights.
        threads: torch's threads within one step, set in each thread that steps; None keeps torch's.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.

    Raises:
        ValueError: invalid ``threads``, or a device that is not available.
    """

    backend = "torch"

    def __init__(
        self,
        network: FoldedNetwork,
        *,
        threads: int | None = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_stages = len(network.outputs)
        self.num_classes = network.num_classes
        self.in_channels = network.in_channels
        self.inputs = InputSpec(NESTED_INPUTS, channels=network.in_channels, dtype=torch.float32)
        self.input_names = self.inputs.names
        self.threads = check_threads(threads)
        self.device = find_device(device)
        self.plan = network.plan
        self.tasks = schedule(network.plan, network.outputs)
        with torch.inference_mode(False):  # usable in and out of inference mode

            def moved(array: object) -> Tensor:
                return torch.tensor(array, device=self.device)

            self.convolutions = {
                key: [(moved(weight), moved(bias)) for weight, bias in units]
                for key, units in network.convolutions.items()
            }
            self.heads = {
                stage: (moved(weight), moved(bias))
                for stage, (weight, bias) in network.heads.items()
            }

    def begin(self, x: Inputs) -> TorchEvaluation:
        """Start the evaluation of images ``[B, C, H, W]``, float32 and normalised."""
        self.require_open()
        (images,) = self.inputs.read(x).values()
        evaluation = TorchEvaluation(self)
        evaluation.results[IMAGE] = {0: images.to(self.device, copy=True)}
        return evaluation

    def join(
        self, evaluations: Sequence[Evaluation], rows: Sequence[Tensor | None] | None = None
    ) -> TorchEvaluation:
        """Concatenate the activations of all samples."""
        self.require_open()
        parts = check_join(self, evaluations, TorchEvaluation)
        taken = check_rows(rows, [len(part.results[IMAGE][0]) for part in parts])
        joined = TorchEvaluation(self, parts[0].stage, parts[0].next)
        for name, slices in parts[0].results.items():
            joined.results[name] = {
                birth: concatenate([part.results[name][birth] for part in parts], taken)
                for birth in slices
            }
        for key, slices in parts[0].inner.items():
            joined.inner[key] = {
                birth: concatenate([part.inner[key][birth] for part in parts], taken)
                for birth in slices
            }
        joined.logits = [
            concatenate(tensors, taken)
            for tensors in zip(*(part.logits for part in parts), strict=True)
        ]
        for part, indices in zip(parts, taken, strict=True):
            if indices is None:
                part.close()
        return joined


class TorchEvaluation(BatchEvaluation):
    """One batch; see :class:`~anynest.engines.session.Evaluation`.

    Attributes:
        next: the index of the next task.
        results: by layer, each node's activations, by birth.
        inner: the same by layer and inner unit.
        logits: of all exits so far, where outputs are averages.
    """

    session: TorchSession

    def __init__(self, session: TorchSession, stage: int = 0, next_: int = 0) -> None:
        super().__init__(session, stage)
        self.next = next_
        self.results: dict[str, dict[int, Tensor]] = {}
        self.inner: dict[tuple[str, int], dict[int, Tensor]] = {}
        self.logits: list[Tensor] = []

    @property
    def at_boundary(self) -> bool:
        """Whether the last task finished a stage."""
        return not self.next or self.session.tasks[self.next - 1].last

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels, height and width of the images."""
        return tuple(self.results[IMAGE][0].shape[1:])

    def step(self) -> Tensor | None:
        """Compute the next node: the logits ``[B, K]`` if it finishes a stage, else None."""
        self.require_stage()
        session = self.session
        use_threads(session.threads)
        task = session.tasks[self.next]
        try:
            # the caller's autocast and gradients have no effect
            with torch.no_grad(), torch.autocast(session.device.type, enabled=False):
                logits = self._compute(session, task)
        except BaseException:
            self.close()  # a node is half computed
            raise
        self.next += 1
        if not task.last:
            return None
        self.stage += 1
        return logits

    def compact(self, indices: Tensor) -> None:
        """Continue with the samples ``indices`` ``[b]`` int64 of the current batch."""
        self.require_open()
        if not self.at_boundary:
            raise ValueError("samples can only be removed between stages; finish the stage first")
        indices = check_indices(indices, len(self.results[IMAGE][0])).to(self.session.device)
        for slices in [*self.results.values(), *self.inner.values()]:
            for birth, tensor in slices.items():
                slices[birth] = tensor.index_select(0, indices)
        self.logits = [logits.index_select(0, indices) for logits in self.logits]

    def close(self) -> None:
        """Release the activations; a second call has no effect."""
        self.closed = True
        self.results, self.inner, self.logits = {}, {}, []

    def _compute(self, session: TorchSession, task: Task) -> Tensor | None:
        if task.exit is not None:
            logits = self._exit(session, task.exit)
            if not session.plan.average:
                return logits
            self.logits.append(logits)
            return torch.stack(self.logits).mean(dim=0)
        assert task.layer is not None
        assert task.node is not None
        self._node(session, task.layer, task.node)
        return None

    def _read(self, plan: Plan, names: tuple[str, ...], birth: int) -> Tensor:
        """The sum of layers, with all their nodes born no later than ``birth``."""
        total: Tensor | None = None
        for name in names:
            slices = self.results[name]
            part = join([tensor for born, tensor in slices.items() if born <= birth])
            total = part if total is None else total + part
        assert total is not None
        return total.relu() if plan.relu_reads and names != (IMAGE,) else total

    def _node(self, session: TorchSession, layer: Layer, node: Node) -> None:
        source = x = self._read(session.plan, node.reads, node.birth)
        pairs = zip(node.units, session.convolutions[layer.name, node.birth], strict=True)
        for number, (unit, (weight, bias)) in enumerate(pairs, 1):
            x = F.conv2d(x, weight, bias, unit.stride, unit.kernel // 2)
            if number < len(node.units):
                slices = self.inner.setdefault((layer.name, number), {})
                slices[node.birth] = x.relu_()
                x = join(list(slices.values()))
        if node.residual == "input":
            x += source[:, node.start : node.start + node.units[-1].outputs]
        elif node.residual is not None:
            x += self.results[node.residual][node.birth]
        if layer.relu:
            x.relu_()
        if layer.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        self.results.setdefault(layer.name, {})[node.birth] = x

    def _exit(self, session: TorchSession, exit_: Exit) -> Tensor:
        weight, bias = session.heads[exit_.stage]
        features = self._read(session.plan, exit_.reads, exit_.stage).mean(dim=(2, 3))
        return F.linear(features, weight, bias)
