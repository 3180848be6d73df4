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
from .segment_engine import SegmentError, SegmentSession, has_segments
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
            onnxruntime on the CPU for nested networks and exported folders, else torch. Others run
            in onnxruntime where it is asked for: their segments are converted to graphs, which
            takes seconds, and compared with PyTorch. A nested network that cannot be folded (its
            modules were replaced, parametrized, pruned or hooked), and another one that cannot be
            cut into segments, runs its own ``stages`` in torch, with a warning in the log that says
            why.
        threads: threads within one step; None leaves the backend's own choice.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.

    Raises:
        TypeError: a module that lacks a method of ``Staged``, or no network and no path.
        ValueError: an unknown backend, a source that the backend cannot run (``ConversionError``:
            a network of which there are no graphs), a device that is not available, threads
            outside 1 to 1024, or weights on the meta device.
    """
    found = resolve(source)
    chosen, place = choose_backend(found, backend, device)
    threads = check_threads(threads)
    is_staged = found.network is not None and not isinstance(found.network, AnytimeNetwork)
    if is_staged and chosen == "torch":
        return _open_staged(found.require_network(), threads, place)
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


def _open_staged(network: Network, threads: int | None, device: str) -> Session:
    """A network of any kind, in torch: by its segments where it has them."""
    if has_segments(network):
        try:
            return SegmentSession(network, threads=threads, device=device)
        except SegmentError as error:
            return _open_modules(network, threads, device, str(error))
    return ModuleSession(network, threads=threads, device=device)


def _open_modules(network: Network, threads: int | None, device: str, reason: str) -> Session:
    _log.warning("calling the network's own stages in PyTorch: %s", reason)
    return ModuleSession(network, threads=threads, device=device)


def choose_backend(
    source: Source, backend: str | None, device: str | torch.device
) -> tuple[str, str]:
    """The backend and device by name, with None and ``auto`` resolved.

    Raises:
        ValueError: an unknown backend, or a device that is not available or not the backend's.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
    if backend == "torch":
        source.require_network()
    is_nested = source.export is not None or isinstance(source.network, AnytimeNetwork)
    if backend == "onnxruntime" or source.export is not None:
        if str(device) not in ("cpu", "auto"):
            raise ValueError(
                f"backend='onnxruntime' computes on the cpu, found device {str(device)!r}"
            )
        return "onnxruntime", "cpu"
    place = find_device(device)
    default = "onnxruntime" if is_nested and place.type == "cpu" else "torch"
    return backend or default, str(place)
