"""Checks and measures everything that has a GPU path on the GPU that is there, then trains.

    python benchmarks/gpu.py --data FOLDER --out gpu --minutes 8
    python benchmarks/gpu.py --dry-run --out dry   # on a CPU, at small size: the same code

Parts, each of which is reported even if another fails:

numerics    every network, engine and method in float32 against float64 on the CPU
nccl        OSGD over a process group of one rank against OSGD without a group
captured    training steps as CUDA graphs against eager ones
throughput  images per second: SGD, OSGD exact and refreshed; eager, compiled, captured
memory      peak bytes of a step
latency     milliseconds to each stage: torch on the GPU, ONNX Runtime on the CPU
train       the paper's protocol for the width-nested ResNet-42 (osgd, sgd-mean, sgd-sum), with the
            rest of the time; the same command goes on where it stopped

The report is ``report.json`` in --out, and lines on the console; status 1 if a check failed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import throughput
import torch
import torch.nn.functional as F
from _report import surroundings
from _rounds import spread
from rich.console import Console
from torch import Tensor, nn

from anynest import create_model, list_methods, make_combiner
from anynest.engines.open import open_session
from anynest.engines.session import stages
from anynest.store import write_whole
from anynest.training import TrainConfig
from anynest.training.step import TrainStep
from anynest.training.training_phases import make_phase

NETWORKS = (
    "width_nested_resnet10",
    "depth_nested_sparse_resnet14",
    "alternating_nested_sparse_resnet14",
    "simultaneous_nested_sparse_resnet26",
    "cascade_sparse_resnet26",
    "even_width_resnet10",
)
LARGE = ("width_nested_resnet42", "depth_nested_sparse_resnet98")
TOLERANCE = 1e-3  # of the largest entry, in float32
TRAINED = ("osgd", "sgd-mean", "sgd-sum")
CAPTURED_STEPS = 24
RESERVE = 20.0  # seconds kept for stopping the training


class Check:
    """Collects what was compared; ``failed`` names what was out of bounds."""

    def __init__(self) -> None:
        self.rows: dict[str, float] = {}
        self.failed: list[str] = []

    def near(self, name: str, found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
        """Record the largest difference, relative to the largest entry."""
        found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
        error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
        self.rows[name] = error
        if not error <= tolerance:
            self.failed.append(f"{name}: {error:.1e}, bound {tolerance:g}")


def batch(size: int = 8, side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(size, 3, side, side, generator=generator),
        torch.randint(10, (size,), generator=generator),
    )


def gradient(model: nn.Module, method: str, x: Tensor, y: Tensor, group: Any = None) -> Tensor:
    """The combined gradient of a step, as one vector."""
    parameters = list(model.parameters())
    losses = [F.cross_entropy(out, y) for out in model(x)]
    make_combiner(method, group=group).backward(losses, parameters)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([grad.flatten() for grad in found])


def numerics(args: argparse.Namespace) -> Check:
    check, (x, y) = Check(), batch()
    for name in NETWORKS[: 2 if args.dry_run else None]:
        torch.manual_seed(0)
        model = create_model(name)
        exact = copy.deepcopy(model).double()
        ours = copy.deepcopy(model).to(args.device)
        for method in list_methods() if name == NETWORKS[0] else ("osgd", "sgd-mean"):
            found = gradient(ours, method, x.to(args.device), y.to(args.device))
            wanted = gradient(exact, method, x.double(), y)
            check.near(f"{name}, {method}", found, wanted)
        exact.eval()
        with torch.no_grad():
            logits = exact(x.double())
        session = open_session(ours.eval(), backend="torch", device=args.device)
        for stage, found in stages(session.begin(x)):
            check.near(f"{name}, engine, stage {stage}", found, logits[stage - 1])
        session.close()
    return check


def nccl(args: argparse.Namespace) -> Check:
    import torch.distributed as dist

    check, (x, y) = Check(), batch()
    torch.manual_seed(0)
    model = create_model(NETWORKS[0]).to(args.device)
    x, y = x.to(args.device), y.to(args.device)
    wanted = gradient(model, "osgd", x, y)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "gloo" if args.device == "cpu" else "nccl",
            store=dist.FileStore(str(Path(folder) / "store"), 1),
            rank=0,
            world_size=1,
        )
        try:
            found = gradient(model, "osgd", x, y, dist.group.WORLD)
        finally:
            dist.destroy_process_group()
    check.near("osgd with a group of one", found, wanted, 1e-5)
    return check


def captured(args: argparse.Namespace) -> Check:
    if args.device == "cpu":
        raise Skipped("a CUDA graph needs a CUDA device")
    check, (x, y) = Check(), batch(64)
    x, y = x.to(args.device), y.to(args.device)
    for method, more in (("sgd-sum", {}), ("osgd", {}), ("osgd", {"refresh": 4})):
        ended = []
        for graph in (False, True):
            config = TrainConfig.from_json(
                {
                    "method": {"name": method, "on_nonfinite": "ignore", **more},
                    "run": {"cuda_graph": graph, "device": args.device},
                }
            )
            torch.manual_seed(0)
            model = config.model.build(10, 3).to(args.device)
            step = TrainStep(config, make_phase(config, model, 0), torch.device(args.device))
            step.phase.train_mode()
            for _ in range(CAPTURED_STEPS):
                step(x, y)
            ended.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        same = "equal bit for bit" if torch.equal(*ended) else "not bit for bit"
        check.near(f"{method} {more or ''}: {same}", ended[1], ended[0], 1e-3)
    return check


def rates(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    settings = argparse.Namespace(
        device=args.device,
        methods=list(throughput.METHODS),
        modes=["eager"] if args.device == "cpu" else list(throughput.MODES),
        batch=4 if args.dry_run else 128,
        steps=throughput.REFRESH,
        rounds=1 if args.dry_run else 5,
        precision="bf16",
        channels_last=True,
    )
    for name in NETWORKS[:1] if args.dry_run else LARGE:
        rows += throughput.measure(name, settings, args.console)
        torch._dynamo.reset()
    return rows


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.device == "cpu":
        raise Skipped("peaks on a CPU are benchmarks/step.py's")
    rows = []
    for name in LARGE:
        for method in throughput.METHODS:
            settings = argparse.Namespace(
                device=args.device, batch=128, precision="fp32", channels_last=False
            )
            run = throughput.Run(name, method, "eager", settings)
            run.rate(2)
            torch.cuda.reset_peak_memory_stats()
            run.rate(2 * throughput.REFRESH)
            peak = torch.cuda.max_memory_allocated() / 2**20
            rows.append({"model": name, "method": method, "peak_mib": peak})
            args.console.print(f"{name}, {method}: {peak:.0f} MiB")
            del run
    return rows


def latency(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    x, _ = batch(1)
    for name in NETWORKS[:1] if args.dry_run else LARGE:
        model = create_model(name).eval()
        for backend, device in (("torch", args.device), ("onnxruntime", "cpu")):
            session = open_session(model, backend=backend, device=device)
            times: list[list[float]] = []
            for _ in range(5 if args.dry_run else 101):
                began, ends = time.perf_counter(), []
                for _, logits in stages(session.begin(x)):
                    float(logits.sum())  # waits for the device
                    ends.append(1e3 * (time.perf_counter() - began))
                times.append(ends)
            session.close()
            found = [spread(list(column)) for column in zip(*times[2:], strict=True)]
            rows.append({"model": name, "backend": backend, "device": device, "ms": found})
            shown = " / ".join(f"{row['median']:.2f}" for row in found)
            args.console.print(f"{name}, {backend} on {device}: {shown} ms")
    return rows


def train(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The paper's cells in their order until the time is up."""
    if args.data is None:
        raise Skipped("no --data")
    if args.dry_run:
        raise Skipped("a dry run trains nothing")
    rows = []
    for method in TRAINED:
        left = args.until - time.monotonic() - RESERVE
        if left < RESERVE:
            break
        command = [sys.executable, "-m", "anynest", "reproduce", "table1", "--only", "width"]
        command += ["--methods", method, "--protocol", "paper", "--seeds", "1", "--data", args.data]
        command += ["--out", str(args.out / "paper"), "--device", args.device]
        with subprocess.Popen(command) as process:
            try:
                process.wait(left)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # saves; the next call goes on
                try:
                    process.wait(RESERVE)
                except subprocess.TimeoutExpired:
                    process.kill()  # its last checkpoint stands
        rows.append({"method": method, "status": process.returncode})
    return rows


class Skipped(Exception):
    """A part that cannot run here, and why."""


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "numerics": numerics,
    "nccl": nccl,
    "captured": captured,
    "latency": latency,
    "memory": memory,
    "throughput": rates,
    "train": train,
}


@contextmanager
def plain_float32() -> Iterator[None]:
    """No TF32, so that float32 means float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def outcome(part: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> dict[str, Any]:
    """A part's entry in the report."""
    began = time.monotonic()
    try:
        with plain_float32():
            found = part(args)
    except Skipped as reason:
        return {"state": "skipped", "why": str(reason)}
    except Exception as error:  # the other parts still run, and the report says so
        traceback.print_exc()
        return {"state": "failed", "why": f"{type(error).__name__}: {error}".splitlines()[0]}
    seconds = time.monotonic() - began
    if isinstance(found, Check):
        state = "failed" if found.failed else "passed"
        entry = {"state": state, "errors": found.rows, "why": "; ".join(found.failed)}
    else:
        entry = {"state": "measured", "rows": found}
    return {**entry, "seconds": round(seconds, 1)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--data", metavar="FOLDER", help="CIFAR-10, for the part train")
    parser.add_argument("--minutes", type=float, default=8.0, help="in all")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda", help="a CUDA device")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at small size")
    args = parser.parse_args()
    if args.dry_run:
        args.device = "cpu"
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run takes the CPU")
    args.console, args.until = Console(), time.monotonic() + 60 * args.minutes
    return args


def main() -> int:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    report: dict[str, Any] = {**surroundings(args.device), "parts": {}}
    for name in args.parts:
        if time.monotonic() > args.until:
            entry: dict[str, Any] = {"state": "skipped", "why": "the time is up"}
        else:
            entry = outcome(PARTS[name], args)
        report["parts"][name] = entry
        write_whole(args.out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
        errors = entry.get("errors")
        worst = f", largest difference {max(errors.values()):.1e}" if errors else ""
        why = f": {entry['why']}" if entry.get("why") else ""
        args.console.print(f"{name}: {entry['state']}{worst}{why}", soft_wrap=True)
    return int(any(entry["state"] == "failed" for entry in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
