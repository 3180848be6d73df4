"""Servers on one core, the load generator on another, and what the system says about them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _serve_network import on_core

HERE = Path(__file__).parent
READY_SECONDS = 120.0
TIMER = """
import sys, threading, time
seconds, late, told = float(sys.argv[1]), [], threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
while not told.is_set():
    start = time.monotonic()
    time.sleep(seconds)
    late.append(time.monotonic() - start - seconds)
print(*late)
"""


def cores() -> tuple[int | None, int | None]:
    """The server's core and the generator's; (None, None) where there is one alone."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)


def stolen() -> float:
    """Seconds since the start that the hypervisor kept from this machine's cores; 0 elsewhere."""
    with suppress(OSError, IndexError):
        return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass
class Server:
    """A running server and its processes."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body or None)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def processes(self) -> list[int]:
        """The process and all its descendants."""
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    queue += map(int, (task / "children").read_text().split())
        return found

    def usage(self) -> dict[str, float]:
        """Resident bytes, open files, threads and CPU seconds of all processes."""
        memory = files = threads = 0
        seconds = 0.0
        for pid in self.processes():
            with suppress(OSError, ValueError):
                proc = Path(f"/proc/{pid}")
                memory += int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                files += len(list((proc / "fd").iterdir()))
                for task in (proc / "task").iterdir():
                    threads += 1
                    seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
        return {"memory": memory, "files": files, "threads": threads, "cpu": seconds}

    def metric(self, name: str) -> float | None:
        """One of its Prometheus metrics; None where it has none."""
        status, body = self.get("/metrics")
        for line in body.decode().splitlines() if status == 200 else ():
            if line.split(" ")[0] == name:
                return float(line.split(" ")[1])
        return None

    def stop(self, kind: int = signal.SIGTERM, patience: float = 20.0) -> int:
        """Ask it to end, or end it; the exit status."""
        pids = self.processes()
        self.process.send_signal(kind)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in pids[1:]:  # what it left behind
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return self.process.returncode


@contextmanager
def serving(
    command: Sequence[str], port: int, ready: str, core: int | None, folder: Path
) -> Iterator[Server]:
    """A server, once ``ready`` answers 200.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the end of what it printed.
    """
    log = folder / f"server-{port}.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out, on_core(core):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        )
    server = Server(process, port, log)
    try:
        until = time.monotonic() + READY_SECONDS
        while True:
            with suppress(OSError, http.client.HTTPException):
                if server.get(ready)[0] == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                said = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{command[1:4]} did not become ready:\n{said}")
            time.sleep(0.1)
        yield server
    finally:
        server.stop()


@dataclass
class Traffic:
    """How requests to one server are written; the fields of ``_serve_load.Plan``."""

    path: str = "/infer"
    dialect: str = "raw"
    tensor: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)


@dataclass
class Load:
    """A generator that runs; ``outcome`` waits for its end."""

    process: subprocess.Popen[bytes]
    plan: Path
    timer: subprocess.Popen[str] | None

    def outcome(self) -> dict[str, Any]:
        if self.process.wait() != 0:
            raise RuntimeError(f"the load generator failed ({self.process.returncode})")
        with np.load(self.plan.with_suffix(".outcome.npz")) as found:
            outcome = {name: found[name] for name in found.files}
        outcome["bare"] = np.array([])
        if self.timer is not None:
            told, _ = self.timer.communicate()
            outcome["bare"] = np.array([float(text) for text in told.split()])
        return outcome


def start_load(
    folder: Path,
    port: int,
    times: Sequence[float],
    images: np.ndarray,
    traffic: Traffic,
    deadline: float,
    *,
    timer: bool = True,
    **more: Any,
) -> Load:
    """Start a generator on its core, and a bare timer of the deadline's length on the server's."""
    server_core, core = cores()
    plan = Path(tempfile.mkdtemp(dir=folder)) / "plan.json"
    settings = asdict(traffic) | more
    settings |= {"port": port, "deadline": deadline, "core": core, "spin": core is not None}
    plan.write_text(json.dumps(settings))
    np.save(plan.with_suffix(".images.npy"), images)
    np.save(plan.with_suffix(".times.npy"), np.array(times))
    bare = None
    if timer:
        with on_core(server_core):
            bare = subprocess.Popen(
                [sys.executable, "-S", "-c", TIMER, str(deadline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
    process = subprocess.Popen([sys.executable, str(HERE / "_serve_load.py"), str(plan)])
    return Load(process, plan, bare)


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Of seconds; zeros where there are none."""
    names = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
    if not len(values):
        return dict.fromkeys(names, 0.0)
    return {name: float(np.quantile(values, q)) for name, q in names.items()}


def summarise(
    outcome: dict[str, Any], labels: np.ndarray, deadline: float, depth: int | None = None
) -> dict[str, Any]:
    """What became of the requests of ordinary clients.

    Args:
        outcome: the generator's.
        labels: the right ones of the images, which requests take in turn.
        deadline: seconds; a later answer is wrong.
        depth: the stage of a static network.
    """
    ordinary = outcome["kind"] == 0
    status, scheduled = outcome["status"][ordinary], outcome["scheduled"][ordinary]
    latency = outcome["done"][ordinary] - scheduled
    answered = status == 200
    in_time = answered & (latency <= deadline)
    truth = labels[np.arange(len(outcome["kind"])) % len(labels)][ordinary]
    right = in_time & (outcome["label"][ordinary] == truth)
    refused = (status == 503) | (status == 429)
    stage = outcome["stage"][ordinary]
    stage = np.full_like(stage, depth) if depth else stage
    sent = outcome["sent"][ordinary]
    lag = (sent - scheduled)[~np.isnan(sent)]
    late = np.maximum(0.0, latency - deadline)[answered | (status == 504)]
    count = max(1, int(ordinary.sum()))
    refusals = (outcome["done"][ordinary] - sent)[refused]
    return {
        "requests": count,
        "in_time": float(in_time.sum() / count),
        "in_time_of_accepted": float(in_time.sum() / max(1, count - refused.sum())),
        "answered": float(answered.sum() / count),
        "refused": float(refused.sum() / count),
        "timeouts": int((status == 504).sum()),
        "gave_up": int((status == 0).sum()),
        "lost": int((status < 0).sum()),
        "errors": int(((status >= 400) & ~refused & (status != 504)).sum()),
        "mean_stage": float(stage[in_time].mean()) if in_time.any() else 0.0,
        "stages": np.bincount(stage[in_time]).tolist() if in_time.any() else [],
        "accuracy": float(right.sum() / count),
        "latency": quantiles(latency[answered]),
        "overshoot": quantiles(late),
        "bare": quantiles(outcome["bare"]),
        "refusal": quantiles(refusals),
        "lag": quantiles(lag) | {"max": float(lag.max()) if len(lag) else 0.0},
        "generator": {
            "busy": float(outcome["busy"] / outcome["wall"]),
            "limit": float(len(outcome["kind"]) / max(1e-9, outcome["busy"])),
        },
        "in_time_per_second": float(in_time.sum() / (scheduled[-1] - outcome["start"])),
    }
