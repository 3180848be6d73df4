"""The engine that calls a network's own ``stages``, one step per stage.

It runs every network: nested ones that cannot be folded, with subclassed, parametrized, pruned or
hooked modules, and those of other libraries that have no ``segments``. The network is copied when
the session is opened, in eval mode.

A generator of ``stages`` computes the batch that it was started with. So samples that left are
still computed (``compact``), and a joined evaluation runs its parts one after another (``join``):
the outputs are right, no time is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..nets import AnytimeNetwork
from ..store.hardware import find_device
from .checks import check_indices, check_threads
from .evaluation import BatchEvaluation, BatchSession, check_join, use_threads
from .inputs import Inputs, InputSpec, whole
from .model_source import Network
from .session import Evaluation

M = TypeVar("M", bound=nn.Module)


def eval_copy(network: M) -> M:
    """A copy in eval mode, without gradients, on the CPU; of nested networks in float32."""
    # tensors that hooks derive from parameters (pruning, weight_norm) cannot be copied with their
    # history; the copy's hooks derive them again
    derived = [
        tensor
        for module in network.modules()
        for tensor in vars(module).values()
        if isinstance(tensor, Tensor) and not tensor.is_leaf
    ]
    memo: dict[int, object] = {id(tensor): tensor.detach().clone() for tensor in derived}
    copied = copy.deepcopy(network, memo).to("cpu").eval().requires_grad_(False)
    return copied.to(torch.float32) if isinstance(network, AnytimeNetwork) else copied


class ModuleSession(BatchSession):
    """A network's ``stages`` in PyTorch; see :class:`~anynest.engines.session.Session`.

    Args:
        network: any network with ``stages``.
        threads: torch's threads within one step, set in each thread that steps; None keeps torch's.
        device: where to compute.

    Raises:
        ValueError: invalid ``threads``, a device that is not available, or inputs without names.
    """

    backend = "torch"
    divides = False  # a running ``stages`` computes its whole batch

    def __init__(
        self,
        network: Network,
        *,
        threads: int | None = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_stages = network.num_stages
        self.num_classes = whole(network, "num_classes")
        self.threads = check_threads(threads)
        self.device = find_device(device)
        with torch.inference_mode(False):  # usable in and out of inference mode
            self.module = eval_copy(network).to(self.device)
        self.inputs = InputSpec.of(self.module)
        self.in_channels, self.input_names = self.inputs.channels, self.inputs.names

    def begin(self, x: Inputs) -> ModuleEvaluation:
        """Start the evaluation of a batch."""
        self.require_open()
        found = self.inputs.read(x)
        named = {name: value.to(self.device, copy=True) for name, value in found.items()}
        positional: list[Tensor] = []
        for name in self.input_names:
            if name not in named:
                break
            positional.append(named.pop(name))
        iterator = iter(self.module.stages(*positional, **named))
        shapes = {name: tuple(value.shape[1:]) for name, value in found.items()}
        size = len(next(iter(found.values())))
        return ModuleEvaluation(self, shapes, [(iterator, size)])

    def join(
        self, evaluations: Sequence[Evaluation], rows: Sequence[Tensor | None] | None = None
    ) -> ModuleEvaluation:
        """One evaluation that runs the parts in turn."""
        self.require_open()
        if rows is not None and any(indices is not None for indices in rows):
            raise ValueError(
                "the batches of this network cannot be divided, because it runs its own stages: "
                "join whole evaluations"
            )
        parts = check_join(self, evaluations, ModuleEvaluation)
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.size)
        joined = ModuleEvaluation(
            self,
            parts[0].sizes,
            [each for part in parts for each in part.parts],
            parts[0].stage,
            torch.cat([part.rows + start for part, start in zip(parts, starts, strict=False)]),
        )
        for part in parts:
            part.parts = []  # they go on
            part.close()
        return joined


class ModuleEvaluation(BatchEvaluation):
    """Batches that advance together; see :class:`~anynest.engines.session.Evaluation`.

    Args:
        session: the session.
        sizes: of every input, without the batch.
        parts: running ``stages`` with their batch sizes.
        stage: the newest finished stage.
        rows: int64 ``[b]``, the samples that go on, among those of all parts; None: all.
    """

    session: ModuleSession

    def __init__(
        self,
        session: ModuleSession,
        sizes: dict[str, tuple[int, ...]],
        parts: list[tuple[Iterator[tuple[int, Tensor]], int]],
        stage: int = 0,
        rows: Tensor | None = None,
    ) -> None:
        super().__init__(session, stage)
        self._sizes, self.parts = sizes, parts
        self.rows = torch.arange(self.size) if rows is None else rows

    @property
    def size(self) -> int:
        """The number of samples that are computed."""
        return sum(size for _, size in self.parts)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input without the batch."""
        return self._sizes

    def step(self) -> Tensor:
        """Compute the next stage: its output."""
        self.require_stage()
        use_threads(self.session.threads)
        try:
            with torch.no_grad(), torch.autocast(self.session.device.type, enabled=False):
                outputs = [self._next(iterator, size) for iterator, size in self.parts]
                output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
                output = output.index_select(0, self.rows.to(output.device))
        except BaseException:
            self.close()
            raise
        self.stage += 1
        return output

    def _next(self, iterator: Iterator[tuple[int, Tensor]], size: int) -> Tensor:
        """The next output of one part; RuntimeError for anything but a batch of outputs."""
        kind = type(self.session.module).__name__
        found = next(iterator, None)
        if found is None:
            raise RuntimeError(
                f"stages of {kind} must yield {self.num_stages} outputs (num_stages), found "
                f"{self.stage}"
            )
        stage, output = found
        if stage != self.stage + 1:
            raise RuntimeError(
                f"stages of {kind} must yield stage {self.stage + 1}, found stage {stage}"
            )
        return check_output(output, size, f"stage {stage} of {kind}")

    def compact(self, indices: Tensor) -> None:
        """Continue with some samples; ``stages`` still computes the others of their batches."""
        self.require_open()
        rows = self.rows[check_indices(indices, len(self.rows))]
        kept, moved, start, shift = [], rows.clone(), 0, 0
        for iterator, size in self.parts:
            inside = (rows >= start) & (rows < start + size)
            if bool(inside.any()):
                kept.append((iterator, size))
                moved[inside] -= shift
            else:
                _close(iterator)
                shift += size
            start += size
        self.parts, self.rows = kept, moved

    def close(self) -> None:
        """End the generators, and with them what they hold; a second call has no effect."""
        self.closed = True
        parts, self.parts = self.parts, []
        for iterator, _ in parts:
            _close(iterator)


def check_output(output: object, size: int, name: str) -> Tensor:
    """The output, if it is a tensor with the batch as dimension 0; else RuntimeError."""
    if not isinstance(output, Tensor):
        raise RuntimeError(
            f"{name} must give a tensor, found {type(output).__name__}: give one of its fields"
        )
    if not output.dim() or len(output) != size:
        raise RuntimeError(
            f"{name} must give an output with the batch of {size} as dimension 0, found "
            f"{list(output.shape)}"
        )
    return output


def _close(iterator: Iterator[tuple[int, Tensor]]) -> None:
    close = getattr(iterator, "close", None)  # of a generator
    if close is not None:
        close()
