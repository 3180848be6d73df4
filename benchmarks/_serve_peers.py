"""Environments of other servers, and the batching of each that serves most requests in time.

Every peer has an environment of its own in the folder of ``--peers``, made on first use with the
versions below. Plain Starlette needs nothing beyond this package's extra and uses its interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from _serve_ports import free_port
from _serve_processes import HERE, Server, Traffic, serving

from anynest.store import read_info

PACKAGES = {
    "starlette": None,
    "litserve": ("litserve==0.2.19", "onnxruntime", "numpy"),
    "mlserver": ("mlserver==1.7.1", "onnxruntime", "numpy"),
    "ray": ("ray[serve]==2.60.0", "onnxruntime", "numpy"),
}
READY = {"starlette": "/ready", "litserve": "/health", "mlserver": "/v2/health/ready", "ray": "/"}
# (largest batch, seconds that a batch waits); what each is tried with
TUNINGS = ((1, 0.0), (8, 0.001), (32, 0.002))


class Missing(Exception):
    """A peer that cannot be measured here, and why."""


def python_of(peer: str, folder: Path) -> str:
    """The interpreter of a peer's environment, which is made if it is not there.

    Raises:
        Missing: it cannot be installed.
    """
    packages = PACKAGES[peer]
    if packages is None:
        return sys.executable
    python = folder / peer / "bin" / "python"
    if (folder / peer / "done").exists():
        return str(python)
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder / peer)],
        [str(python), "-m", "pip", "install", "--quiet", *packages],
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["unknown"])[-1]
            raise Missing(f"{peer} cannot be installed: {reason[:200]}")
    (folder / peer / "done").touch()
    return str(python)


def version_of(peer: str, python: str) -> str:
    code = f"from importlib.metadata import version; print(version({peer!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def traffic_of(peer: str) -> Traffic:
    """How a peer wants its requests."""
    if peer != "mlserver":
        return Traffic("/" if peer == "ray" else "/infer")
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}  # it takes no binary tensors
    return Traffic("/v2/models/network/infer", "base64", tensor)


@contextmanager
def peer_serving(
    peer: str,
    python: str,
    graph: Path,
    run: Path,
    batch: int,
    wait: float,
    core: int | None,
    folder: Path,
) -> Iterator[Server]:
    """A peer with a static network.

    Raises:
        Missing: it does not start.
    """
    info, port = read_info(run), free_port()
    command = [
        python, str(HERE / "_serve_peer.py"), peer,
        "--model", str(graph), "--port", str(port),
        "--batch", str(batch), "--wait", str(wait),
        "--mean", json.dumps(info.mean), "--std", json.dumps(info.std),
    ]  # fmt: skip
    with ExitStack() as stack:
        try:
            opened = serving(command, port, READY[peer], core, folder)
            server = stack.enter_context(opened)
        except RuntimeError as error:
            raise Missing(f"{peer} does not start: {error}") from None
        yield server
