"""The engine that calls a network's ``segments``, one step per segment.

A segment takes the state that the one before gave. Between two segments samples leave
(``index_select``) and batches become one (``cat``), so a step computes the samples that are there
and no others. The segments are copied when the session is opened, in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
from .inputs import Inputs, InputSpec, whole
from .model_source import Network
from .module_engine import check_output, eval_copy
from .session import Evaluation

State = tuple[Tensor, ...]


class SegmentError(ValueError):
    """A network that has no segments, or cannot give them."""


def has_segments(network: nn.Module) -> bool:
    """Whether the network has a method ``segments``."""
    found = getattr(network, "segments", None)
    return callable(found) and not isinstance(found, nn.Module)


def read_segments(network: nn.Module) -> list[nn.Module]:
    """What the network's ``segments`` gives.

    Raises:
        SegmentError: it has no such method, or the method raises RuntimeError: this network cannot
            be cut.
    """
    if not has_segments(network):
        raise SegmentError(
            f"segments (segments() -> modules, segment(*state) -> (output, *state)) are missing in "
            f"{type(network).__name__}: implement them, or use backend='torch', which needs stages "
            "alone"
        )
    method: Any = network.segments
    try:
        return list(method())
    except RuntimeError as error:
        raise SegmentError(" ".join(str(error).split())) from error


class SegmentSession(BatchSession):
    """A network's ``segments`` in PyTorch; see :class:`~anynest.engines.session.Session`.

    Args:
        network: any network with ``segments``.
        threads: torch's threads within one step, set in each thread that steps; None keeps torch's.
        device: where to compute.

    Raises:
        SegmentError: the network cannot give its segments.
        ValueError: another number of segments than stages, invalid ``threads``, a device that is
            not available, or inputs without names.
    """

    backend = "torch"

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
        self.inputs = InputSpec.of(network).all_required()
        self.in_channels, self.input_names = self.inputs.channels, self.inputs.names
        segments = read_segments(network)
        self._accepts: Any = getattr(network, "accepts", None)
        if len(segments) != self.num_stages:
            raise ValueError(
                f"segments of {type(network).__name__} must be one for each of {self.num_stages} "
                f"stages, found {len(segments)}"
            )
        with torch.inference_mode(False):  # usable in and out of inference mode
            # copied together: weights that segments share stay shared
            self.module = eval_copy(nn.ModuleList(segments)).to(self.device)
        self.segments = list(self.module)

    def begin(self, x: Inputs) -> SegmentEvaluation:
        """Start the evaluation of a batch."""
        self.require_open()
        found = list(self.inputs.read(x).values())
        if self._accepts is not None and not self._accepts(*found):
            raise ValueError(
                "the network's segments do not stand for inputs of these sizes, found "
                f"{', '.join(str(list(v.shape)) for v in found)}: give inputs of the example's "
                "sizes, or make the network from an example of these"
            )
        return SegmentEvaluation(self, tuple(v.to(self.device, copy=True) for v in found))

    def join(
        self, evaluations: Sequence[Evaluation], rows: Sequence[Tensor | None] | None = None
    ) -> SegmentEvaluation:
        """Concatenate the states of all samples."""
        self.require_open()
        parts = check_join(self, evaluations, SegmentEvaluation)
        taken = check_rows(rows, [part.batch for part in parts])
        states = zip(*(part.state for part in parts), strict=True)
        state = tuple(concatenate(tensors, taken) for tensors in states)
        batch = sum(
            part.batch if indices is None else len(indices)
            for part, indices in zip(parts, taken, strict=True)
        )
        joined = SegmentEvaluation(self, state, parts[0].stage, batch)
        for part, indices in zip(parts, taken, strict=True):
            if indices is None:
                part.close()
        return joined


class SegmentEvaluation(BatchEvaluation):
    """One batch; a step is one segment. See :class:`~anynest.engines.session.Evaluation`.

    Args:
        session: the session.
        state: what the next segment takes.
        stage: the newest finished stage.
        batch: number of samples; None: as the state says.
    """

    session: SegmentSession

    def __init__(
        self, session: SegmentSession, state: State, stage: int = 0, batch: int | None = None
    ) -> None:
        super().__init__(session, stage)
        self.state = state
        self.batch = len(state[0]) if batch is None else batch

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of every state tensor without the batch."""
        return tuple(tuple(tensor.shape[1:]) for tensor in self.state)

    def step(self) -> Tensor:
        """Compute the next segment: its output."""
        self.require_stage()
        session = self.session
        use_threads(session.threads)
        state, self.state = self.state, ()  # freed as the segment goes on
        try:
            with torch.no_grad(), torch.autocast(session.device.type, enabled=False):
                found = session.segments[self.stage](*state)
                output = self._read(found)
        except BaseException:
            self.close()
            raise
        self.stage += 1
        return output

    def _read(self, found: object) -> Tensor:
        """Keep the state, and return the output, which shares no memory with it."""
        number = self.stage + 1
        if not isinstance(found, (tuple, list)) or not found:
            raise RuntimeError(
                f"segment {number} must give (output, *state), found {type(found).__name__}"
            )
        output = check_output(found[0], self.batch, f"segment {number}")
        self.state = tuple(
            check_output(tensor, self.batch, f"segment {number}'s state") for tensor in found[1:]
        )
        if number == self.num_stages:
            self.state = ()
        elif not self.state:
            raise RuntimeError(f"segment {number} must give state for the next, found none")
        memory = {tensor.untyped_storage().data_ptr() for tensor in self.state}
        return output.clone() if output.untyped_storage().data_ptr() in memory else output

    def compact(self, indices: Tensor) -> None:
        """Continue with the samples ``indices`` ``[b]`` int64 of the current batch."""
        self.require_open()
        indices = check_indices(indices, self.batch).to(self.session.device)
        self.state = tuple(tensor.index_select(0, indices) for tensor in self.state)
        self.batch = len(indices)

    def close(self) -> None:
        """Release the state; a second call has no effect."""
        self.closed = True
        self.state = ()
