"""Is OSGD with weights that are refreshed now and then as good as OSGD? Error per stage on CIFAR-10.

    python benchmarks/refresh.py --data FOLDER --out FOLDER --processes 2 --report

Trains a small width-depth nested network by OSGD (exact), by OSGD(refresh=4, 16, 64) and by SGD on
the mean and on the sum of the losses, from the same weights and on the same batches for each
seed. Every finished run is one JSON file in --out: what is there is not run again, so that an
interrupted study goes on where it stood. --report reads them all and writes tables and pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _refresh_report import write_report
from torch import Tensor

from anynest import create_model, make_combiner
from anynest.data import Dataset, Loader, load, make_loader
from anynest.multitask import Combiner
from anynest.nets import AnytimeNetwork
from anynest.store import write_whole
from anynest.store.hardware import describe_environment

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("osgd", {}),
    "k=4": ("osgd", {"refresh": 4}),
    "k=16": ("osgd", {"refresh": 16}),
    "k=64": ("osgd", {"refresh": 64}),
    "sgd-sum": ("sgd-sum", {}),
    "sgd-mean": ("sgd-mean", {}),
}
WARMUP = 0.1  # of the steps: linear rise of the rate, then half a cosine to zero
FORMAT = 1


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What must be equal for runs to be compared."""
    return {
        "format": FORMAT,
        "model": args.model,
        "growth": args.growth,
        "base_width": args.base_width,
        "steps": args.steps,
        "batch": args.batch,
        "lr": args.lr,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup": WARMUP,
        "test_images": args.test_images,
    }


def rate(step: int, steps: int) -> float:
    """The factor on the learning rate."""
    rise = max(1, round(WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def endless(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from loader.batches(epoch)
        epoch += 1


def network(settings: dict[str, Any], seed: int, data: Dataset) -> AnytimeNetwork:
    torch.manual_seed(seed)
    growth = None if settings["growth"] is None else [tuple(pair) for pair in settings["growth"]]
    return create_model(
        settings["model"],
        num_classes=len(data.classes),
        growth=growth,
        base_width=settings["base_width"],
    )


def train(
    model: AnytimeNetwork, combiner: Combiner, loader: Loader, settings: dict[str, Any]
) -> dict[str, list[Any]]:
    """The whole training; per step the losses, w, and what a refresh measured."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(
        parameters,
        lr=settings["lr"],
        momentum=settings["momentum"],
        nesterov=True,
        weight_decay=settings["weight_decay"],
    )
    trace: dict[str, list[Any]] = {
        name: [] for name in ("losses", "weights", "gram", "drift", "refreshed")
    }
    batches = endless(loader)
    model.train()
    for step in range(settings["steps"]):
        optimizer.param_groups[0]["lr"] = settings["lr"] * rate(step, settings["steps"])
        images, labels = next(batches)
        losses = [F.cross_entropy(logits, labels) for logits in model(images)]
        optimizer.zero_grad()
        stats = combiner.backward(losses, parameters)
        optimizer.step()
        trace["losses"].append([round(loss, 5) for loss in stats.losses.tolist()])
        trace["weights"].append(stats.loss_weights.tolist())
        trace["gram"].append(None if stats.gram is None else stats.gram.tolist())
        trace["drift"].append(None if stats.drift is None else stats.drift.item())
        trace["refreshed"].append(stats.refreshed)
    return trace


@torch.no_grad()
def errors(model: AnytimeNetwork, loader: Loader, count: int) -> list[float]:
    """Percent of the test images that each stage gets wrong."""
    model.eval()
    wrong, seen = [0] * model.num_stages, 0
    for images, labels in loader.batches(0):
        images, labels = images[: count - seen], labels[: count - seen]
        for stage, logits in enumerate(model(images)):
            wrong[stage] += int((logits.argmax(1) != labels).sum())
        seen += len(labels)
        if seen >= count:
            break
    return [100 * w / seen for w in wrong]


@cache
def dataset(path: str) -> Dataset:
    """Decoded once a process."""
    return load(path)


def run_one(data_path: str, out: Path, method: str, seed: int, settings: dict[str, Any]) -> None:
    """Train once and write what came of it."""
    torch.set_num_threads(1)
    data = dataset(data_path)
    train_loader = make_loader(
        data.train, settings["batch"], train=True, mean=data.mean, std=data.std, seed=seed
    )
    test_loader = make_loader(data.test, 250, train=False, mean=data.mean, std=data.std)
    model = network(settings, seed, data)
    name, options = METHODS[method]
    combiner = make_combiner(name, **options)
    began, processor = time.perf_counter(), time.process_time()
    trace = train(model, combiner, train_loader, settings)
    result = {
        "settings": settings,
        "method": method,
        "seed": seed,
        "error": errors(model, test_loader, settings["test_images"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - processor,
        "combiner": repr(combiner),
        "data": str(data),
        "environment": describe_environment(torch.device("cpu")),
        "trace": trace,
    }
    text = json.dumps(result, allow_nan=False)
    write_whole(file_of(out, method, seed), text.encode())


def file_of(out: Path, method: str, seed: int) -> Path:
    return out / f"{method.replace('=', '')}-seed{seed}.json"


def run_all(args: argparse.Namespace) -> None:
    """What is not there yet, seed by seed, so that an unfinished study is balanced."""
    settings = settings_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(method, seed) for seed in range(args.seeds) for method in args.methods]
    left = [job for job in wanted if not file_of(args.out, *job).exists()]
    print(f"{len(wanted) - len(left)} of {len(wanted)} runs are there", flush=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.processes) as pool:
        pending = [
            (job, pool.apply_async(run_one, (args.data, args.out, *job, settings))) for job in left
        ]
        for (method, seed), outcome in pending:
            outcome.get()
            done = json.loads(file_of(args.out, method, seed).read_text())
            shown = " ".join(f"{error:.2f}" for error in done["error"])
            print(f"{method}, seed {seed}: {shown} %, {done['seconds']:.0f} s", flush=True)


def growth_of(text: str) -> list[list[int]]:
    """``1x1,2x1,2x2`` as width and depth of each stage."""
    return [[int(n) for n in pair.split("x")] for pair in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", help="CIFAR-10, as for `anynest train --data`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs' JSON files")
    parser.add_argument("--model", default="alternating_nested_sparse_resnet14")
    parser.add_argument("--growth", type=growth_of, default="1x1,2x1,2x2", help="width x depth")
    parser.add_argument("--base-width", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, a core each")
    parser.add_argument("--report", action="store_true", help="tables and pictures when done")
    parser.add_argument("--report-only", action="store_true", help="of what is there; run nothing")
    parser.add_argument("--images", type=Path, help="folder of the pictures (default: --out)")
    args = parser.parse_args()
    if not args.report_only:
        run_all(args)
    if args.report or args.report_only:
        write_report(args.out, args.images or args.out, list(METHODS))


if __name__ == "__main__":
    main()
