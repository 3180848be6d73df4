"""PyTorch's backend: a network stopped and resumed between any two of its nodes.

Weights are copied at opening, with batch norm folded into them: training the network further, or closing it,
changes nothing here. A network in training mode is served as in eval mode, by its running statistics.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol

import torch
from torch import Tensor

from ..nets import AnytimeNetwork
from ..store.hardware import find_device
from .gemm import GemmProgram, supports
from .plain import PlainProgram
from .program import compile_program

KERNELS = ("auto", "gemm", "plain")
POOLED_BYTES = 1 << 28  # of free workspaces; one in use is never taken away


class Workspace(Protocol):
    """The memory of one evaluation, and what is computed in it."""

    nbytes: int

    def load(self, x: Tensor) -> None:
        """Take a batch of images."""

    def run(self, index: int) -> Tensor | None:
        """Do a task: an exit's logits ``[B, K]``, None for a node."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the images."""

    def rest(self) -> None:
        """Let go of what need not be held between two batches."""


class TorchSession:
    """A network in PyTorch, ready to answer; see :class:`~anynest.engines.session.Session`.

    Args:
        network: any nested network, a subnetwork or a plain one.
        threads: torch's threads in one step, set in each thread that steps; None leaves them be.
        device: where to compute.
        kernels: ``"gemm"`` (matrix products in prepared memory, a CPU's fast way), ``"plain"`` (ordinary
            convolutions) or ``"auto"``.

    Raises:
        ValueError: unknown kernels, ones that do not suit the network or device, a device that is
            not there, or a norm that cannot be folded.
    """

    backend = "torch"

    def __init__(
        self,
        network: AnytimeNetwork,
        *,
        threads: int | None = None,
        device: str | torch.device = "cpu",
        kernels: str = "auto",
    ) -> None:
        if kernels not in KERNELS:
            raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, got {kernels!r}")
        self.num_stages = network.num_stages
        self.num_classes = network.num_classes
        self.in_channels = network.in_channels
        self.threads = threads
        self.device = find_device(device)
        suited = self.device.type == "cpu" and supports(network.plan)
        if kernels == "gemm" and not suited:
            raise ValueError(
                f"kernels='gemm' needs the CPU and a network whose reads are all rectified, got {device}; "
                "use kernels='auto'"
            )
        self.kernels = "gemm" if suited and kernels != "plain" else "plain"
        with torch.inference_mode(False):
            self._program = compile_program(network)
            self._compiled = (
                GemmProgram(self._program)
                if self.kernels == "gemm"
                else PlainProgram(self._program, self.device)
            )
        self._lock = threading.Lock()
        self._free: OrderedDict[int, tuple[tuple[int, ...], Workspace]] = OrderedDict()
        self._closed = False

    def begin(self, x: Tensor) -> TorchEvaluation:
        """Start on a batch of images ``[B, C, H, W]``, float32 and normalised."""
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(
                f"images must be [batch, {self.in_channels}, height, width], none of them 0, got "
                f"{list(x.shape)}"
            )
        if x.dtype != torch.float32:
            raise ValueError(f"images must be float32, got {x.dtype}; scale and normalise them")
        shape = x.shape[0], x.shape[2], x.shape[3]
        workspace = self._take(shape)
        workspace.load(x)
        return TorchEvaluation(self, workspace, shape)

    def close(self) -> None:
        """Free the memory that is kept for the next batch; evaluations under way may finish."""
        with self._lock:
            self._closed = True
            self._free.clear()

    def _take(self, shape: tuple[int, int, int]) -> Workspace:
        with self._lock:
            if self._closed:
                raise RuntimeError("the session is closed; open another")
            for key in reversed(self._free):  # the last one used is the likeliest in the cache
                if self._free[key][0] == shape:
                    return self._free.pop(key)[1]
        return self._compiled.workspace(*shape)

    def _give(self, shape: tuple[int, int, int], workspace: Workspace) -> None:
        workspace.rest()
        with self._lock:
            if self._closed:
                return
            self._free[id(workspace)] = shape, workspace
            while sum(kept.nbytes for _, kept in self._free.values()) > POOLED_BYTES:
                self._free.popitem(last=False)


class TorchEvaluation:
    """One batch on its way through the network; see :class:`~anynest.engines.session.Evaluation`."""

    def __init__(
        self, session: TorchSession, workspace: Workspace, shape: tuple[int, int, int]
    ) -> None:
        self.stage = 0
        self.num_stages = session.num_stages
        self._session = session
        self._workspace: Workspace | None = workspace
        self._shape = shape
        self._images = shape[0]
        self._tasks = session._program.tasks
        self._average = session._program.plan.average
        self._threads = session.threads
        self._next = 0
        self._logits: list[Tensor] = []

    def step(self) -> Tensor | None:
        """Compute the next node: the logits ``[B, K]`` of a stage if it is finished now, else None."""
        workspace, index = self._workspace, self._next
        if workspace is None:
            raise RuntimeError("the evaluation is closed; begin another")
        if index == len(self._tasks):
            raise RuntimeError("every stage is finished; begin another evaluation")
        if self._threads is not None and self._threads != torch.get_num_threads():
            torch.set_num_threads(self._threads)
        try:
            logits = workspace.run(index)
        except BaseException:
            self._workspace = None  # half done: not to be used again
            raise
        self._next = index + 1
        if logits is None:
            return None
        if self._average:
            self._logits.append(logits)
            logits = torch.stack(self._logits).mean(dim=0)
        if not self._tasks[index].last:
            return None
        self.stage += 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with some samples alone: ``rows`` ``[b]`` int64, indices into the current batch."""
        if self._workspace is None:
            raise RuntimeError("the evaluation is closed; begin another")
        if self._next and not self._tasks[self._next - 1].last:
            raise ValueError("samples may leave between stages alone; finish the stage first")
        rows = check_rows(rows, self._images)
        self._workspace.keep(rows)
        self._images = len(rows)
        self._logits = [logits.index_select(0, rows.to(logits.device)) for logits in self._logits]

    def cancel(self) -> None:
        """Nothing: a node is short, and the next one is not begun unless it is asked for."""

    def close(self) -> None:
        """Give the buffers back; a second call does nothing."""
        workspace, self._workspace = self._workspace, None
        self._logits = []
        if workspace is not None:
            self._session._give(self._shape, workspace)


def check_rows(rows: Tensor, images: int) -> Tensor:
    """Indices of samples to go on with, on the CPU; ValueError if they are not that."""
    if rows.dim() != 1 or rows.dtype != torch.int64 or not len(rows):
        raise ValueError(
            f"rows must be a list of at least one int64 index, got {list(rows.shape)} {rows.dtype}"
        )
    rows = rows.detach().cpu()
    if int(rows.min()) < 0 or int(rows.max()) >= images or len(rows) > images:
        raise ValueError(
            f"rows must be at most {images} indices from 0 to {images - 1}, got {rows.tolist()}"
        )
    return rows
