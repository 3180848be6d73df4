"""A network ready to answer, and one batch on its way through it: what every backend offers.

    session = open_session(model)                 # or a run folder, a weights file, an exported folder
    evaluation = session.begin(images)
    for stage, logits in stages(evaluation):      # stop whenever time is up
        ...
    evaluation.close()

A *step* is the smallest piece of work that is not interrupted: one layer's node (torch), one stage's graph
(onnxruntime). Whoever drives the steps may stop between any two of them.

Legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..nets import AnytimeNetwork
from ..store.hardware import find_device

BACKENDS = ("torch", "onnxruntime")
MAX_THREADS = 1024  # of one step: many more, and the system has none to give


class Evaluation(Protocol):
    """One batch on its way through the network.

    Used by one thread at a time; ``cancel`` alone may come from any thread.
    """

    @property
    def stage(self) -> int:
        """The newest finished stage, 0 before the first."""

    @property
    def num_stages(self) -> int:
        """S, the last stage there is."""

    def step(self) -> Tensor | None:
        """Compute the next node: the logits ``[B, K]`` of a stage if it is finished now, else None.

        The logits are the caller's own: no later step writes over them.

        Raises:
            RuntimeError: every stage is finished, or the evaluation is closed.
        """

    def keep(self, rows: Tensor) -> None:
        """Go on with some samples of the batch alone (compaction).

        Args:
            rows: ``[b]`` int64, which of the current batch, in the order wanted from now on.

        Raises:
            ValueError: rows that are not such indices, none at all, or a stage that is half done.
        """

    def cancel(self) -> None:
        """Have the running step stop early where the backend can; no more steps are wanted."""

    def close(self) -> None:
        """Give the buffers back; a second call does nothing."""


class Session(Protocol):
    """A network ready to answer. ``begin`` may be called from several threads at once."""

    @property
    def backend(self) -> str:
        """``"torch"`` or ``"onnxruntime"``."""

    @property
    def num_stages(self) -> int:
        """S, how many answers an evaluation gives."""

    @property
    def num_classes(self) -> int:
        """K, the logits of each answer."""

    @property
    def in_channels(self) -> int:
        """C, the channels of the images."""

    def begin(self, x: Tensor) -> Evaluation:
        """Start on a batch of images ``[B, C, H, W]``, float32 and normalised.

        Raises:
            ValueError: images of another shape or type.
            RuntimeError: the session is closed.
        """

    def close(self) -> None:
        """Free what the session holds; evaluations that are under way may finish."""


def stages(evaluation: Evaluation) -> Iterator[tuple[int, Tensor]]:
    """Run the steps that are left; yield (stage, logits ``[B, K]``) as each stage is finished."""
    while evaluation.stage < evaluation.num_stages:
        logits = evaluation.step()
        if logits is not None:
            yield evaluation.stage, logits


def check_options(backend: str, threads: int | None, device: str | torch.device) -> str:
    """The device by its name; ValueError, one line, for an option that does not fit."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads must be a positive integer or None, got {threads!r}")
    if threads is not None and threads > MAX_THREADS:
        raise ValueError(f"threads must be at most {MAX_THREADS}, got {threads}")
    if backend == "torch":
        return str(find_device(device))
    if str(device) not in ("cpu", "auto"):
        raise ValueError(f"backend='onnxruntime' computes on the cpu, got device {str(device)!r}")
    return "cpu"


def open_session(
    source: AnytimeNetwork | str | Path,
    *,
    backend: str = "torch",
    threads: int | None = None,
    device: str | torch.device = "cpu",
) -> Session:
    """A session for a network.

    Args:
        source: a network, the folder of a finished run, a weights file, or an exported folder.
        backend: ``"torch"`` (a network, run or weights) or ``"onnxruntime"`` (those, or an exported folder).
        threads: threads within one step; None leaves the backend's own choice.
        device: where torch computes: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.

    Raises:
        ValueError: an unknown backend, a source that the backend cannot run, a device that is not
            there, threads below 1 or above 1024.
    """
    device = check_options(backend, threads, device)
    if backend == "onnxruntime":
        from .onnx.session import OnnxSession

        return OnnxSession.open(source, threads=threads)
    from .model_source import resolve
    from .torch_engine import TorchSession

    return TorchSession(resolve(source).require_network(), threads=threads, device=device)
