"""``open_session``: choose an engine for a network and open it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from ..nets import AnytimeNetwork
from ..store.hardware import find_device
from .checks import check_threads
from .folding import FoldError
from .model_source import Network, Source, resolve
from .module_engine import ModuleSession
from .segment_engine import SegmentError, SegmentSession, has_segments, read_segments
from .session import BACKENDS, Session
from .torch_engine import TorchSession
from .verify import fold

_log = logging.getLogger(__name__)


def open_session(
    source: nn.Module | str | Path | Source,
    *,
    backend: str | None = None,
    threads: int | None = 1,
    device: str | torch.device = "cpu",
) -> Session:
    """Open a session for a network.

    Args:
        source: a network, the folder of a finished run, a weights file, or an exported folder. A
            network is any module that satisfies :class:`~anynest.nets.Staged`.
        backend: ``"onnxruntime"`` (CPU), ``"torch"`` (not for exported folders) or None:
            onnxruntime on the CPU for nested networks, those with ``segments`` and exported
            folders, else torch. With None, what cannot run so runs in torch, with a warning in the
            log that says why: a nested network that cannot be folded (its modules were replaced,
            parametrized, pruned or hooked), segments that cannot be exported, a network that cannot
            be cut into segments.
        threads: threads within one step; None leaves the backend's own choice.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.

    Raises:
        TypeError: a module that lacks a method of ``Staged``, or no network and no path.
        ValueError: an unknown backend, a source that the backend cannot run, a device that is not
            available, threads outside 1 to 1024, or weights on the meta device.
    """
    found = resolve(source)
    chosen, place = choose_backend(found, backend, device)
    threads = check_threads(threads)
    if found.network is not None and not isinstance(found.network, AnytimeNetwork):
        return _open_staged(found, chosen, threads, place, required=backend is not None)
    if chosen == "onnxruntime":
        from .onnx.session import OnnxSession

        try:
            return OnnxSession.open(found, threads=threads)
        except FoldError as error:
            if backend is not None:
                raise
            return _open_modules(found.require_network(), threads, place, error.reason)
    network = found.require_nested("folding", "use backend='onnxruntime'")
    try:
        return TorchSession(fold(network), threads=threads, device=place)
    except FoldError as error:
        return _open_modules(network, threads, place, error.reason)


def _open_staged(
    found: Source, backend: str, threads: int | None, device: str, *, required: bool
) -> Session:
    """A network of any kind: by its segments where it has them, else by its ``stages``."""
    network = found.require_network()
    if not has_segments(network):
        return ModuleSession(network, threads=threads, device=device)
    reason = ""
    if backend == "onnxruntime":
        from .onnx.export.compare import ConversionError
        from .onnx.session import OnnxSession

        try:
            return OnnxSession.open(found, threads=threads)
        except ConversionError as error:
            if required:
                raise
            reason = error.reason
    try:
        session = SegmentSession(network, threads=threads, device=device)
    except SegmentError as error:
        return _open_modules(network, threads, device, str(error))
    if reason:
        _log.warning("running the network's segments in PyTorch, not ONNX Runtime: %s", reason)
    return session


def _open_modules(network: Network, threads: int | None, device: str, reason: str) -> Session:
    _log.warning("calling the network's own stages in PyTorch: %s", reason)
    return ModuleSession(network, threads=threads, device=device)


def choose_backend(
    source: Source, backend: str | None, device: str | torch.device
) -> tuple[str, str]:
    """The backend and device by name, with None and ``auto`` resolved.

    Raises:
        ValueError: an unknown backend, one that cannot run this network (``SegmentError``), or a
            device that is not available or not the backend's.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
    if backend == "torch":
        source.require_network()
    network = source.network
    has_graphs = network is None or isinstance(network, AnytimeNetwork) or has_segments(network)
    if backend == "onnxruntime" and not has_graphs:
        read_segments(source.require_network())  # says what is missing
    if backend == "onnxruntime" or source.export is not None:
        if str(device) not in ("cpu", "auto"):
            raise ValueError(
                f"backend='onnxruntime' computes on the cpu, found device {str(device)!r}"
            )
        return "onnxruntime", "cpu"
    place = find_device(device)
    default = "onnxruntime" if has_graphs and place.type == "cpu" else "torch"
    return backend or default, str(place)
