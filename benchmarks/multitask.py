"""Three tasks on one trunk: sums of losses, OSGD, TorchJD, and OSGD in the metric of AdamW.

    python benchmarks/multitask.py --out results/multitask.jsonl
    python benchmarks/multitask.py --out results/multitask.jsonl --report-only
    python benchmarks/multitask.py --out results/multitask.jsonl --parts cost

Problems, on scikit-learn's digits (1000 images to train, 297 to validate, 500 to test):

tasks   a noisy digit to its class, its parity, and the digit without noise; one trunk of two layers
exits   the class at each of three exits of a nested network

Every method's learning rate is the one of its grid with the lowest validation error over two seeds
that are not used again. Each run is one line of JSON in --out; runs that are there are not repeated,
so that an interrupted study continues. ``--parts promise`` measures at every step which part of the
first task's own step each method keeps, and ``--parts cost`` times steps side by side.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _multitask_report import SHOWN, best_rate, read_records, write_report
from torch import Tensor, nn

from anynest import OSGD, __version__, create_model
from anynest.multitask import Combiner, WeightedSGD, gradient_stats
from anynest.multitask.methods.metric import OptimizerMetric
from anynest.store.hardware import describe_environment

NOISE = 0.5  # standard deviation; the images' entries are between 0 and 1
TRAIN, VALIDATION = 1000, 297
TUNING_SEEDS = (100, 101)
COSINES_EVERY = 20  # steps

Gradient = Callable[[list[Tensor]], Any]  # from losses to .grad


@cache
def digits() -> tuple[Tensor, Tensor]:
    """[N, 64] images between 0 and 1 and [N] labels, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16
    return images[order], torch.tensor(data.target)[order]


class Tasks(nn.Module):
    """Class, parity and denoising; the losses are divided by those of a constant prediction."""

    names = ("class", "parity", "denoising")
    trivial = (90.0, 50.0, 100.0)  # errors of a constant prediction

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in (10, 2, 64))
        self.features = torch.empty(0)

    def forward(self, images: Tensor, noise: Tensor) -> list[Tensor]:
        self.features = self.trunk(images + NOISE * noise)
        return [head(self.features) for head in self.heads]

    def losses(self, images: Tensor, labels: Tensor, noise: Tensor) -> list[Tensor]:
        of_class, parity, image = self(images, noise)
        return [
            F.cross_entropy(of_class, labels) / math.log(10),
            F.cross_entropy(parity, labels % 2) / math.log(2),
            F.mse_loss(image, images) / variance(),
        ]

    def errors(self, images: Tensor, labels: Tensor, noise: Tensor) -> list[float]:
        """Percent wrong of class and parity, and the squared error in percent of the variance."""
        of_class, parity, image = self(images, noise)
        return [
            100 * float((of_class.argmax(1) != labels).double().mean()),
            100 * float((parity.argmax(1) != labels % 2).double().mean()),
            100 * float(F.mse_loss(image, images)) / variance(),
        ]


class Exits(nn.Module):
    """A width-depth nested Sparse ResNet with three exits."""

    names = ("exit 1", "exit 2", "exit 3")
    trivial = (90.0, 90.0, 90.0)

    def __init__(self) -> None:
        super().__init__()
        self.network = create_model(
            "alternating_nested_sparse_resnet14",
            num_classes=10,
            in_channels=1,
            base_width=4,
            growth=[(1, 1), (2, 1), (2, 2)],
        )

    def forward(self, images: Tensor, noise: Tensor) -> list[Tensor]:
        logits: list[Tensor] = self.network((images + NOISE * noise).view(-1, 1, 8, 8))
        return logits

    def losses(self, images: Tensor, labels: Tensor, noise: Tensor) -> list[Tensor]:
        return [F.cross_entropy(logits, labels) for logits in self(images, noise)]

    def errors(self, images: Tensor, labels: Tensor, noise: Tensor) -> list[float]:
        wrong = (logits.argmax(1) != labels for logits in self(images, noise))
        return [100 * float(w.double().mean()) for w in wrong]


@cache
def variance() -> float:
    """Of the training images around their mean."""
    return float(digits()[0][:TRAIN].var(dim=0, unbiased=False).mean())


PROBLEMS: dict[str, Any] = {"tasks": Tasks, "exits": Exits}


def make_gradient(method: str, model: Any, optimizer: torch.optim.Optimizer) -> Gradient:
    """How a method's losses become ``.grad``."""
    parameters = list(model.parameters())
    name, _, order = method.partition("-")
    priority = {"": None, "forward": [0, 1, 2], "backward": [2, 1, 0]}[order]
    combiner: Combiner
    if name in ("mean", "sum"):
        combiner = WeightedSGD(reduction=name)
    elif name == "osgd":
        combiner = OSGD(priority)
    elif name == "metric":
        combiner = OSGD(priority, metric=optimizer)
    else:
        return torchjd_gradient(name, model)
    return lambda losses: combiner.backward(losses, parameters)


def torchjd_gradient(name: str, model: Any) -> Gradient:
    """As TorchJD does it: the trunk's gradients are aggregated, each head has that of its loss."""
    try:
        from torchjd import aggregation, autojac

        aggregator = {"upgrad": aggregation.UPGrad, "pcgrad": aggregation.PCGrad}[name]()
    except ImportError as error:
        raise SystemExit(
            f"{name} needs torchjd, found {error}: pip install 'anynest[bench]', or leave it out of"
            " --methods"
        ) from error
    shared = list(model.trunk.parameters())

    def gradient(losses: list[Tensor]) -> None:
        autojac.mtl_backward(losses, features=model.features, parallel_chunk_size=1)
        autojac.jac_to_grad(shared, aggregator)

    return gradient


def make_optimizer(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=lr)


def batches(seed: int, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches, a function of the seed alone."""
    images, labels = digits()
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(TRAIN, generator=generator)
        for index in order.split(size):
            if len(index) == size:
                noise = torch.randn(size, 64, generator=generator)
                yield images[index], labels[index], noise


def evaluate(model: Any, part: slice, seed: int) -> list[float]:
    """Errors on a part of the images, with noise that depends on the seed alone."""
    images, labels = digits()
    images, labels = images[part], labels[part]
    noise = torch.randn(len(images), 64, generator=torch.Generator().manual_seed(1000 + seed))
    model.eval()
    with torch.no_grad():
        found: list[float] = model.errors(images, labels, noise)
    model.train()
    return found


def train(settings: dict[str, Any], lr: float, seed: int) -> dict[str, Any]:
    """One run: errors at its end, mean cosines, and the time of its steps."""
    torch.manual_seed(seed)
    model = PROBLEMS[settings["problem"]]()
    optimizer = make_optimizer(settings["optimizer"], model, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["steps"])
    gradient = make_gradient(settings["method"], model, optimizer)
    parameters = list(model.parameters())
    cosines: list[Tensor] = []
    spent = 0.0
    stream = batches(seed, settings["batch"])
    for step in range(settings["steps"]):
        batch = next(stream)
        began = time.process_time()
        losses = model.losses(*batch)
        if not all(math.isfinite(loss.item()) for loss in losses):
            return {"diverged": True}
        spent += time.process_time() - began
        if step % COSINES_EVERY == 0:
            found = gradient_stats(losses, parameters).cosines
            assert found is not None
            cosines.append(found)
        began = time.process_time()
        optimizer.zero_grad()
        gradient(losses)
        optimizer.step()
        schedule.step()
        spent += time.process_time() - began
    validation, test = slice(TRAIN, TRAIN + VALIDATION), slice(TRAIN + VALIDATION, None)
    return {
        "diverged": False,
        "validation": evaluate(model, validation, seed),
        "test": evaluate(model, test, seed),
        "cosines": torch.stack(cosines).mean(0).tolist(),
        "processor_ms_per_step": 1e3 * spent / settings["steps"],
    }


def promise(settings: dict[str, Any], lr: float, seed: int) -> dict[str, Any]:
    r"""At each step, what the update does to one task relative to that task's own gradient.

    before: :math:`\\langle g_1, D u\\rangle / \\langle g_1, D g_1\\rangle`, D of the state before
    the step; after: with D of the state after it; whole: the optimizer's two steps from the same
    state, :math:`\\langle g_1, \\Delta(u)\\rangle / \\langle g_1, \\Delta(g_1)\\rangle`, with
    the average of earlier gradients and the weight decay.
    """
    torch.manual_seed(seed)
    model = PROBLEMS[settings["problem"]]()
    optimizer = make_optimizer(settings["optimizer"], model, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["steps"])
    gradient = make_gradient(settings["method"], model, optimizer)
    metric = OptimizerMetric(optimizer)
    parameters = list(model.parameters())
    out: dict[str, list[float]] = {"before": [], "after": [], "whole": []}
    stream = batches(seed, settings["batch"])
    for _ in range(settings["measured"]):
        losses = model.losses(*next(stream))
        own = torch.autograd.grad(
            losses[settings["task"]], parameters, retain_graph=True, allow_unused=True
        )
        optimizer.zero_grad()
        gradient(losses)
        update = [p.grad for p in parameters]
        out["before"].append(kept(own, update, dense(metric, parameters)))
        alone = trial(optimizer, parameters, own)
        whole = trial(optimizer, parameters, update)
        out["whole"].append(kept_by(own, whole, alone))
        optimizer.step()
        out["after"].append(kept(own, update, dense(metric, parameters)))
        schedule.step()
    return {"task": settings["task"], "kept": out}


def dense(metric: OptimizerMetric, parameters: list[Tensor]) -> list[Tensor]:
    """D of each parameter; ones before the first step."""
    found = metric.of(parameters)
    if found is None or any(diagonal is None for diagonal in found):
        return [torch.ones_like(p, dtype=torch.float64) for p in parameters]
    return [d.dense() for d in found if d is not None]


def dot(a: Any, b: Any) -> float:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return float(sum((x.double() * y.double()).sum() for x, y in pairs))


def kept(own: Any, update: Any, diagonal: list[Tensor]) -> float:
    scaled = [None if g is None else d * g for g, d in zip(own, diagonal, strict=True)]
    return dot(scaled, update) / dot(scaled, own)


def kept_by(own: Any, step: list[Tensor], alone: list[Tensor]) -> float:
    return dot(own, step) / dot(own, alone)


def trial(optimizer: torch.optim.Optimizer, parameters: list[Any], grads: Any) -> list[Tensor]:
    """How the optimizer would move the parameters by these gradients; nothing is changed."""
    state = copy.deepcopy(optimizer.state_dict())
    weights = [p.detach().clone() for p in parameters]
    before = [p.grad for p in parameters]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = grad
    optimizer.step()
    moved = [p.detach() - w for p, w in zip(parameters, weights, strict=True)]
    optimizer.load_state_dict(state)
    if not state["state"]:
        optimizer.state.clear()
    with torch.no_grad():
        for p, weight, grad in zip(parameters, weights, before, strict=True):
            p.copy_(weight)
            p.grad = grad
    return moved


def cost(settings: dict[str, Any], methods: list[str], rounds: int) -> list[dict[str, Any]]:
    """Median time of a step, each method in turn in each round; the first tenth is left out. The
    ratio is to the step of the sum, which is timed in any case.
    """
    methods = list(dict.fromkeys(["sum", *methods]))
    trainers = []
    for method in methods:
        torch.manual_seed(0)
        model = PROBLEMS[settings["problem"]]()
        optimizer = make_optimizer(settings["optimizer"], model, 1e-4)
        trainers.append((model, optimizer, make_gradient(method, model, optimizer)))
    batch = next(batches(0, settings["batch"]))
    seconds: list[list[float]] = [[] for _ in methods]
    for _ in range(rounds):
        for (model, optimizer, gradient), found in zip(trainers, seconds, strict=True):
            began = time.perf_counter()
            losses = model.losses(*batch)
            optimizer.zero_grad()
            gradient(losses)
            optimizer.step()
            found.append(time.perf_counter() - began)
    medians = [statistics.median(found[rounds // 10 :]) for found in seconds]
    return [
        {"method": method, "ms": 1e3 * median, "ratio": median / medians[0]}
        for method, median in zip(methods, medians, strict=True)
    ]


SGD_RATES = (0.01, 0.03, 0.09, 0.27, 0.81)
ADAM_RATES = (0.001, 0.003, 0.009, 0.027)
ORDERS = ["osgd-forward", "osgd-backward"]
METRIC = ["metric-forward", "metric-backward"]
# part: problem, optimizer, learning rates, methods
PARTS: dict[str, tuple[str, str, tuple[float, ...], list[str]]] = {
    "sgd": ("tasks", "sgd", SGD_RATES, ["sum", "mean", *ORDERS, "upgrad", "pcgrad"]),
    "adamw": ("tasks", "adamw", ADAM_RATES, ["sum", *ORDERS, "upgrad", "pcgrad"]),
    "adamw-metric": ("tasks", "adamw", ADAM_RATES, METRIC),
    "exits": ("exits", "adamw", ADAM_RATES, ["sum", *ORDERS]),
    "exits-metric": ("exits", "adamw", ADAM_RATES, METRIC),
}
# problem, most steps, and methods with the task whose step is compared
FIRST = [("sum", 0), ("osgd-forward", 0), ("metric-forward", 0)]
LAST = [("sum", 2), ("osgd-backward", 2), ("metric-backward", 2)]
PROMISES = [("tasks", 100, FIRST + LAST), ("exits", 40, FIRST)]


class Study:
    """The records of a study, and what is still to run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        self.records = read_records(args.out)
        self.common = {
            "command": " ".join(["python benchmarks/multitask.py", *sys.argv[1:]]),
            "revision": revision(),
            "versions": {"anynest": __version__, **libraries()},
            "environment": describe_environment(torch.device("cpu")),
        }

    def settings(self, part: str, method: str, **more: Any) -> dict[str, Any]:
        problem, optimizer, _, _ = PARTS[part]
        steps = self.args.steps if problem == "tasks" else self.args.exit_steps
        named = {"problem": problem, "optimizer": optimizer, "method": method}
        return {**named, "steps": steps, "batch": self.args.batch, **more}

    def run(
        self, kind: str, settings: dict[str, Any], lr: float, seed: int, work: Callable[..., Any]
    ) -> None:
        """Run unless the record is there."""
        key = {"kind": kind, "settings": settings, "lr": lr, "seed": seed}
        if any(all(r.get(k) == v for k, v in key.items()) for r in self.records):
            return
        began, processor = time.perf_counter(), time.process_time()
        found = work(settings, lr, seed)
        spent = {
            "seconds": round(time.perf_counter() - began, 3),
            "processor_seconds": round(time.process_time() - processor, 3),
        }
        self.add({**key, **found, **spent})
        shown = " ".join(f"{e:.2f}" for e in found.get("test", []))
        where = " ".join(str(settings[k]) for k in ("problem", "optimizer", "method"))
        print(f"{kind} {where} lr {lr} seed {seed}: {shown} {spent['seconds']:.1f} s", flush=True)

    def add(self, record: dict[str, Any]) -> None:
        """Append one line."""
        whole = {**record, **self.common, "finished": datetime.now(UTC).isoformat("T", "seconds")}
        self.records.append(whole)
        with self.args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")

    def errors(self, part: str) -> None:
        """Tune every method, then run it with its seeds; seed by seed."""
        _, _, rates, methods = PARTS[part]
        methods = [method for method in methods if method in self.args.methods]
        for method in methods:
            for lr in rates:
                for seed in TUNING_SEEDS[: self.args.tuning_seeds]:
                    self.run("tune", self.settings(part, method), lr, seed, train)
        for seed in range(self.args.seeds):
            for method in methods:
                settings = self.settings(part, method)
                self.run("test", settings, best_rate(self.records, settings), seed, train)

    def promises(self) -> None:
        """At the rate tuned for the sum, so that the same optimizer is compared."""
        for problem, most, compared in PROMISES:
            part = {"tasks": "adamw", "exits": "exits"}[problem]
            lr = best_rate(self.records, self.settings(part, "sum"))
            measured = 2 if self.args.quick else most
            for seed in range(self.args.seeds):
                for method, task in compared:
                    settings = self.settings(part, method, task=task, measured=measured)
                    self.run("promise", settings, lr, seed, promise)

    def costs(self) -> None:
        """Never from the records: a machine differs from the next."""
        for parts in (("sgd",), ("adamw", "adamw-metric"), ("exits", "exits-metric")):
            methods = [method for part in parts for method in PARTS[part][3]]
            methods = [method for method in methods if method in self.args.methods]
            settings = self.settings(parts[0], "all")
            rounds = self.args.rounds if settings["problem"] == "tasks" else self.args.rounds // 5
            for found in cost(settings, methods, max(rounds, 2)):
                self.add({"kind": "cost", "settings": settings, **found})
                print(f"cost {parts[0]} {found['method']}: {found['ratio']:.2f}", flush=True)


def revision() -> str:
    """The commit that runs, with -dirty for changes."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        where = Path(__file__).parent
        found = subprocess.run(command, cwd=where, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def libraries() -> dict[str, str]:
    """Versions of what is compared with, where installed."""
    found = {}
    for name in ("torchjd", "qpsolvers", "quadprog", "scikit-learn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*PARTS, "promise", "cost"]
    parser.add_argument("--out", type=Path, required=True, help="file of the records")
    parser.add_argument("--parts", nargs="+", choices=every, default=every[:-1])
    parser.add_argument("--methods", nargs="+", choices=list(SHOWN), default=list(SHOWN))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, choices=(1, 2), default=2)
    parser.add_argument("--steps", type=int, default=1500, help="of the problem tasks")
    parser.add_argument("--exit-steps", type=int, default=100, help="of the problem exits")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=500, help="of the part cost")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, for a test")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument("--page", type=Path, help="page whose marks the tables go between")
    parser.add_argument("--figures", type=Path, help="folder of the pictures")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.tuning_seeds, args.steps, args.exit_steps = 2, 1, 3, 3
        args.rounds = 2
    torch.set_num_threads(1)
    study = Study(args)
    if not args.report_only:
        for part in args.parts:
            if part == "promise":
                study.promises()
            elif part == "cost":
                study.costs()
            else:
                study.errors(part)
    if args.report_only or args.page or args.figures:
        write_report(study.records, args.page, args.figures)


if __name__ == "__main__":
    main()
