"""``anynest doctor``: what is installed, what it runs on, and whether it computes correctly."""

import argparse
import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..._version import __version__
from ...multitask import make_combiner
from ...multitask.methods.reference import osgd, padded
from ...nets import create_model
from ...store.hardware import describe_environment
from ...training.environment import find_device
from ...training.errors import RunError
from ...training.output.checkpoint import Checkpoints
from ...training.output.reporting import counted
from ..console import Console, print_json

REQUIRED = (
    *("torch", "numpy", "onnx", "onnxruntime", "safetensors", "rich", "pillow"),
    *("scikit-learn", "scipy", "matplotlib", "shtab"),
)
EXTRAS = {
    "parquet": "pyarrow",
    "hub": "huggingface_hub",
    "tensorboard": "tensorboard",
    "ray": "ray",
}
TOLERANCE = 1e-5  # relative, float32 against float64


def run(arguments: argparse.Namespace) -> int:
    """Run the checks and print the report."""
    device = find_device("auto")
    report: dict[str, Any] = {
        "anynest": __version__,
        **describe_environment(device),
        "packages": {name: installed(name) for name in REQUIRED},
        "extras": {extra: installed(name) for extra, name in EXTRAS.items()},
    }
    with Console(stderr=True).status("checking"):
        report["checks"] = [check(name, test) for name, test in CHECKS.items()]
    healthy = all(done["ok"] for done in report["checks"])
    if arguments.json:
        print_json({**report, "healthy": healthy})
    else:
        show(report)
    return 0 if healthy else 1


def installed(name: str) -> str | None:
    """A package's version, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check(name: str, test: Callable[[], str]) -> dict[str, Any]:
    """Run one check on one thread: more are slower on busy cores. An error is the detail."""
    began, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        detail, ok = test(), True
    except (ArithmeticError, RuntimeError, ValueError, OSError, ImportError) as error:
        detail, ok = " ".join(str(error).split()), False
    finally:
        torch.set_num_threads(threads)
    return {"name": name, "ok": ok, "detail": detail, "seconds": time.perf_counter() - began}


def check_step() -> str:
    """An OSGD step of a small nested network against Algorithm 2 in float64."""
    torch_state = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        model = create_model("width_nested_resnet10")
        images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    finally:
        torch.set_rng_state(torch_state)
    parameters = list(model.parameters())
    losses = [torch.nn.functional.cross_entropy(out, labels) for out in model(images)]
    rows = [
        padded(
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), parameters
        )
        for loss in losses
    ]
    make_combiner("osgd").backward(losses, parameters)
    found = padded([parameter.grad for parameter in parameters], parameters)
    expected, _ = osgd(rows)
    error = float((found - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise ArithmeticError(f"relative error {error:.1e}, at most {TOLERANCE:.0e} is correct")
    return f"relative error {error:.1e} against the float64 reference"


def check_stages() -> str:
    """Stage by stage gives the same logits as all stages at once."""
    model = create_model("simultaneous_nested_sparse_resnet26").eval()
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        pairs = zip(model(images), model.stages(images), strict=True)
        gap = max(float((whole - part).abs().max()) for whole, (_, part) in pairs)
    if not gap <= 1e-4:
        raise ArithmeticError(f"logits must agree within 1e-4, found a difference of {gap:.1e}")
    return f"logits agree within {gap:.1e}"


def check_disk() -> str:
    """A checkpoint is written, synced and read back."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.save({"tensor": torch.arange(1000)}, 1)
        warnings: list[str] = []
        state = checkpoints.load_newest(warnings.append)
        if state is None or not torch.equal(state["tensor"], torch.arange(1000)):
            raise RunError(f"a checkpoint in {folder} must be read back whole, found {warnings}")
        return f"a checkpoint in {Path(folder).parent} was read back whole"


CHECKS: dict[str, Callable[[], str]] = {
    "an OSGD step": check_step,
    "stages one by one": check_stages,
    "the disk": check_disk,
}


def show(report: dict[str, Any]) -> None:
    """As lines of text."""
    console = Console()
    console.print(f"anynest {report['anynest']}, Python {report['python']}, {report['platform']}")
    console.print(
        "packages: " + ", ".join(f"{k} {v or '-'}" for k, v in report["packages"].items())
    )
    extras = [f"{k} {v or 'not installed'}" for k, v in report["extras"].items()]
    console.print("extras: " + ", ".join(extras))
    accelerator = f" ({report['accelerator']})" if report["accelerator"] else ""
    console.print(
        f"device: {report['device']}{accelerator}; {report['processor']}, "
        f"{counted(report['cores'], 'core')}, {counted(report['threads'], 'thread')}"
    )
    for done in report["checks"]:
        word = "ok  " if done["ok"] else "FAIL"
        console.print(f"{word} {done['name']}: {done['detail']} ({done['seconds']:.2f} s)")
