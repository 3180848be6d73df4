"""``anynest doctor``: what is installed, what it runs on, and whether it computes rightly."""

import argparse
import importlib.metadata
import json
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
from ..console import Console
from ..flags import Commands

REQUIRED = ("torch", "numpy", "safetensors", "rich", "pillow", "scikit-learn", "matplotlib")
EXTRAS = {
    "parquet": "pyarrow",
    "hub": "huggingface_hub",
    "tensorboard": "tensorboard",
}
TOLERANCE = 1e-5  # relative, float32 against float64


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="versions, devices and a two-second self-check",
        description="Print versions, devices and threads, and check that training computes "
        "rightly here. Exit status 1 where a check fails.",
        epilog="example: anynest doctor --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Look, check, print."""
    device = find_device("auto")
    report: dict[str, Any] = {
        "anynest": __version__,
        **describe_environment(device),
        "packages": {name: installed(name) for name in REQUIRED},
        "extras": {extra: installed(name) for extra, name in EXTRAS.items()},
        "checks": [check(name, test) for name, test in CHECKS.items()],
    }
    healthy = all(done["ok"] for done in report["checks"])
    if arguments.json:
        print(json.dumps({**report, "healthy": healthy}, indent=2))
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
    """Run one check; whatever it raises is its finding."""
    began = time.perf_counter()
    try:
        detail, ok = test(), True
    except (ArithmeticError, RuntimeError, ValueError, OSError, ImportError) as error:
        detail, ok = " ".join(str(error).split()), False
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
        raise ArithmeticError(f"relative error {error:.1e}, at most {TOLERANCE:.0e} is right")
    return f"relative error {error:.1e} against the float64 reference"


def check_stages() -> str:
    """Stage by stage gives what all stages at once give."""
    model = create_model("simultaneous_nested_sparse_resnet26").eval()
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        pairs = zip(model(images), model.stages(images), strict=True)
        gap = max(float((whole - part).abs().max()) for whole, (_, part) in pairs)
    if not gap <= 1e-4:
        raise ArithmeticError(f"logits differ by {gap:.1e}")
    return f"logits agree within {gap:.1e}"


def check_disk() -> str:
    """A checkpoint is written, synced and read back."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.save({"tensor": torch.arange(1000)}, 1)
        warnings: list[str] = []
        state = checkpoints.load_newest(warnings.append)
        if state is None or not torch.equal(state["tensor"], torch.arange(1000)):
            raise RunError(f"a checkpoint in {folder} did not come back whole: {warnings}")
        return f"a checkpoint in {Path(folder).parent} came back whole"


CHECKS: dict[str, Callable[[], str]] = {
    "an OSGD step": check_step,
    "stages one by one": check_stages,
    "the disk": check_disk,
}


def show(report: dict[str, Any]) -> None:
    """As lines of text."""
    console = Console(highlight=False, soft_wrap=True)
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
