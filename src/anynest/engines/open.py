"""``open_session``: choose an engine for a network and open it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..nets import AnytimeNetwork
from ..store.hardware import find_device
from .checks import check_threads
from .folding import FoldError
from .model_source import Source, resolve
from .module_engine import ModuleSession
from .session import BACKENDS, Session
from .torch_engine import TorchSession
from .verify import fold

_log = logging.getLogger(__name__)


def open_session(
    source: AnytimeNetwork | str | Path | Source,
    *,
    backend: str | None = None,
    threads: int | None = 1,
    device: str | torch.device = "cpu",
) -> Session:
    """Open a session for a network.

    Args:
        source: a network, the folder of a finished run, a weights file, or an exported folder.
        backend: ``"onnxruntime"`` (CPU), ``"torch"`` (not for exported folders) or None:
            onnxruntime on the CPU, torch on other devices. A network that cannot be folded (its
            modules were replaced, parametrized, pruned or hooked) runs its own modules in torch,
            with a warning in the log that says why.
        threads: threads within one step; None leaves the backend's own choice.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.

    Raises:
        ValueError: an unknown backend, a source that the backend cannot run, a device that is not
            available, threads outside 1 to 1024, or weights on the meta device.
    """
    found = resolve(source)
    chosen, place = choose_backend(found, backend, device)
    threads = check_threads(threads)
    if chosen == "onnxruntime":
        from .onnx.session import OnnxSession

        try:
            return OnnxSession.open(found, threads=threads)
        except FoldError as error:
            if backend is not None:
                raise
            return _open_modules(found.require_network(), threads, place, error)
    network = found.require_network()
    try:
        return TorchSession(fold(network), threads=threads, device=place)
    except FoldError as error:
        return _open_modules(network, threads, place, error)


def _open_modules(
    network: AnytimeNetwork, threads: int | None, device: str, error: FoldError
) -> Session:
    _log.warning("calling the network's own modules in PyTorch, stage by stage: %s", error.reason)
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
    if backend == "onnxruntime" or source.export is not None:
        if str(device) not in ("cpu", "auto"):
            raise ValueError(
                f"backend='onnxruntime' computes on the cpu, found device {str(device)!r}"
            )
        return "onnxruntime", "cpu"
    place = find_device(device)
    return backend or ("onnxruntime" if place.type == "cpu" else "torch"), str(place)
