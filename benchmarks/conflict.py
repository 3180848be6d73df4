"""When is the projection worth it? An experiment that can refute our two explanations.

    python benchmarks/conflict.py --out results/conflict/conflict.jsonl
    python benchmarks/conflict.py --read results/conflict/conflict.jsonl --into docs/conflict.md

Two tasks classify scikit-learn's digits through one hidden layer. Two things vary: what the tasks
*share* (8 of 80 units, all 80, 4 units and no others, all 80 and the classifier), and for how many
classes their labels *conflict* (0, 2, 5 or 10 of 10: task 2 names the next of them instead). Five
methods separate the direction of a step from its length:

    sum            g_1 + g_2
    osgd           Algorithm 2, task 1 first
    sum, as long   the direction of the sum, in every step as long as OSGD's
    osgd, as long  OSGD's direction, in every step as long as the sum
    mean           the paper's SGD

Predictions, fixed before the runs:

1. OSGD's gain over the paper's SGD is the length of its step: at equal length and equal learning
   rate the direction makes no difference. Refuted in a setting whose interval of *osgd less sum, as
   long* (or of *osgd, as long, less sum*) does not contain 0.
2. The direction matters only where the tasks' gradients on shared weights have a negative cosine.
   Refuted in a setting with a positive mean cosine and such an interval.

Every finished run is a line of --out; what is there is not run again. One thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _conflict_report import markdown
from _pages import write_part
from rich.console import Console
from torch import Tensor, nn

from anynest import OSGD, WeightedSGD, gradient_stats
from anynest.data import Dataset, load
from anynest.experiments.sweep.job import revision
from anynest.store import write_whole
from anynest.store.hardware import describe_environment

TASKS, CLASSES = 2, 10
TRAINED, BATCH, EPOCHS = 400, 50, 50  # images; those that are left over join the test images
SHARES = {  # shared units, and each task's own
    "8 of 80 units": (8, 72),
    "80 of 80 units": (80, 0),
    "4 of 4 units": (4, 0),
    "80 units and classifier": (80, 0),
}
CONFLICTS = (0, 2, 5, 10)  # classes for which task 2 has another label
METHODS = ("sum", "osgd", "sum, as long", "osgd, as long", "mean")
RATES = (0.02, 0.06, 0.2)
MEASURE_EVERY = 10  # steps between two measurements of the cosine


@dataclass(frozen=True)
class Setting:
    """One run: what the tasks share, the conflict, the method, its rate and the seed."""

    share: str
    conflict: int
    method: str
    lr: float
    seed: int

    @property
    def key(self) -> list[Any]:
        """What identifies its record."""
        return [self.share, self.conflict, self.method, self.lr, self.seed]


class TwoTasks(nn.Module):
    """Two classifiers on one hidden layer, of which a part is shared. [B, 64] -> 2 x [B, 10]."""

    def __init__(self, share: str) -> None:
        super().__init__()
        units, own = SHARES[share]
        self.shared = nn.Linear(64, units)
        self.own = nn.ModuleList(nn.Linear(64, own) for _ in range(TASKS if own else 0))
        heads = 1 if "classifier" in share else TASKS
        self.heads = nn.ModuleList(nn.Linear(units + own, CLASSES) for _ in range(heads))

    def forward(self, x: Tensor) -> list[Tensor]:
        common = self.shared(x)
        hidden = [torch.cat([common, own(x)], 1).relu() for own in self.own]
        hidden = hidden or [common.relu()] * TASKS
        heads = [self.heads[min(task, len(self.heads) - 1)] for task in range(TASKS)]
        return [head(h) for head, h in zip(heads, hidden, strict=True)]

    def common(self) -> list[nn.Parameter]:
        """The parameters that both tasks use."""
        both = [self.shared, *(self.heads if len(self.heads) == 1 else ())]
        return [parameter for module in both for parameter in module.parameters()]


@cache
def digits() -> Dataset:
    """The digits; of the training images a tenth is held out."""
    return load("digits")


def batch_of(split: str) -> tuple[Tensor, Tensor]:
    """A split's pixels [N, 64], normalised, and its labels [N]."""
    data = digits()
    if split == "validation":
        images, labels = data.validation.images, data.validation.labels
    else:
        images, labels = data.train.images[:TRAINED], data.train.labels[:TRAINED]
    if split == "test":
        images = torch.cat([data.test.images, data.train.images[TRAINED:]])
        labels = torch.cat([data.test.labels, data.train.labels[TRAINED:]])
    return (images.flatten(1) / 255 - data.mean[0]) / data.std[0], labels


def labels_of(labels: Tensor, conflict: int) -> list[Tensor]:
    """Each task's labels: task 2 names the next of the first ``conflict`` classes.

    >>> [row.tolist() for row in labels_of(torch.arange(4), 2)]
    [[0, 1, 2, 3], [1, 0, 2, 3]]
    """
    moved = torch.where(labels < conflict, (labels + 1) % max(conflict, 1), labels)
    return [labels, moved]


def gradient(combiner: Any, losses: list[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    """What a combiner makes of the losses, with the graph kept."""
    for parameter in parameters:
        parameter.grad = None
    combiner.backward(losses, parameters, retain_graph=True)
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def norm(gradients: list[Tensor]) -> Tensor:
    """The length of all of them as one vector."""
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


def step_of(method: str, losses: list[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradient that a method steps along."""
    summed, osgd = WeightedSGD(reduction="sum"), OSGD(priority=[0, 1])
    if method == "mean":
        return gradient(WeightedSGD(reduction="mean"), losses, parameters)
    direction = gradient(summed if method.startswith("sum") else osgd, losses, parameters)
    if not method.endswith("as long"):
        return direction
    other = norm(gradient(osgd if method.startswith("sum") else summed, losses, parameters))
    own = norm(direction)
    return [g * (other / own) if own > 0 else g for g in direction]


def errors_of(model: TwoTasks, split: str, conflict: int) -> list[float]:
    """Each task's share of wrong answers."""
    x, labels = batch_of(split)
    with torch.no_grad():
        outputs = model(x)
    pairs = zip(outputs, labels_of(labels, conflict), strict=True)
    return [(out.argmax(1) != y).float().mean().item() for out, y in pairs]


def train(setting: Setting, epochs: int) -> dict[str, Any]:
    """One run's record. Equal seeds start from equal weights and see equal batches."""
    generator = torch.Generator().manual_seed(setting.seed)
    torch.manual_seed(setting.seed)
    model = TwoTasks(setting.share)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=setting.lr, momentum=0.9)
    x, labels = batch_of("train")
    targets = labels_of(labels, setting.conflict)
    steps, cosines = epochs * (TRAINED // BATCH), list[float]()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    started = time.process_time()
    for step in range(steps):
        if step % (TRAINED // BATCH) == 0:
            order = torch.randperm(len(x), generator=generator)
        rows = order[:BATCH]
        order = order.roll(-BATCH)
        losses = [
            F.cross_entropy(out, y[rows]) for out, y in zip(model(x[rows]), targets, strict=True)
        ]
        if step % MEASURE_EVERY == 0:
            found = gradient_stats(losses, model.common()).cosines
            assert found is not None
            cosines.append(found[0, 1].item())
        for parameter, g in zip(
            parameters, step_of(setting.method, losses, parameters), strict=True
        ):
            parameter.grad = g
        optimizer.step()
        schedule.step()
    return {
        "key": setting.key,
        "share": setting.share,
        "conflict": setting.conflict,
        "method": setting.method,
        "lr": setting.lr,
        "seed": setting.seed,
        "epochs": epochs,
        "cosine": round(statistics.mean(cosines), 4),
        "held_out_error": errors_of(model, "validation", setting.conflict),
        "error": errors_of(model, "test", setting.conflict),
        "cpu_seconds": round(time.process_time() - started, 2),
        "revision": revision(),
        "environment": describe_environment(torch.device("cpu")),
    }


def wanted(seeds: int, quick: bool) -> list[Setting]:
    """All runs, a whole seed before the next."""
    shares = ["8 of 80 units", "80 units and classifier"] if quick else list(SHARES)
    conflicts, rates = ((0, 10), (0.06,)) if quick else (CONFLICTS, RATES)
    return [
        Setting(share, conflict, method, lr, seed)
        for seed, share, conflict, method, lr in product(
            range(seeds), shares, conflicts, METHODS, rates
        )
    ]


def read(path: Path) -> list[dict[str, Any]]:
    """The finished runs."""
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def run(out: Path, seeds: int, epochs: int, quick: bool, console: Console) -> None:
    """Train what is missing."""
    records = read(out)
    if others := {record["epochs"] for record in records} - {epochs}:
        raise SystemExit(
            f"{out} has runs of {others.pop()} epochs, found --epochs {epochs}: take another --out"
        )
    done = [record["key"] for record in records]
    settings = wanted(seeds, quick)
    left = [setting for setting in settings if setting.key not in done]
    console.print(f"{len(settings)} runs, {len(settings) - len(left)} done")
    started = time.monotonic()
    for number, setting in enumerate(left, 1):
        records.append(train(setting, epochs))
        write_whole(out, "".join(json.dumps(r) + "\n" for r in records).encode())
        minutes = (time.monotonic() - started) / number * (len(left) - number) / 60
        if number % 20 == 0 or number == len(left):
            console.print(f"{number} of {len(left)}; about {minutes:.0f} min left")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="results, one line a run")
    parser.add_argument("--read", type=Path, help="print the tables of these results")
    parser.add_argument("--into", type=Path, help="with --read: a page to write them into")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--quick", action="store_true", help="few settings, to see that it runs")
    args = parser.parse_args()
    if (args.out is None) == (args.read is None):
        parser.error("give either --out or --read")
    torch.set_num_threads(1)
    if args.out:
        run(args.out, args.seeds, args.epochs, args.quick, Console())
        return
    text = markdown(read(args.read), len(wanted(args.seeds, args.quick)))
    if args.into:
        write_part(args.into, "conflict", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
