"""Images per second in training: SGD, OSGD exact and refreshed; eager, compiled, graphed.

    python benchmarks/throughput.py --device cuda --precision bf16 --json throughput.json
    python benchmarks/throughput.py --models depth_nested_sparse_resnet14 --batch 32 --modes eager

Each round runs every pair of method and mode once, for several steps, in an order rotated from
round to round; medians have quartiles. The ceiling is a matrix product on this device in the same
precision, measured in the same run; the share of it counts the multiply-adds that the method needs
(the forward pass once, twice that for each loss's backward pass over its own subnetwork; none for
the zeros of dense kernels, norms, sums and the optimizer).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _report import ranged, surroundings, write_json
from _rounds import interleave, spread
from rich.console import Console
from torch import Tensor

from anynest import OSGD, WeightedSGD, create_model
from anynest.multitask import Combiner, compile_for_tasks
from anynest.nets import AnytimeNetwork
from anynest.training.cuda_graph import GraphedStep, make_capturable

MODELS = ["width_nested_resnet42", "depth_nested_sparse_resnet98"]
REFRESH = 16
METHODS: dict[str, Callable[[], Combiner]] = {
    "sgd": lambda: WeightedSGD(on_nonfinite="ignore"),
    "exact": lambda: OSGD(on_nonfinite="ignore"),
    "lazy": lambda: OSGD(refresh=REFRESH, on_nonfinite="ignore"),
}
MODES = ("eager", "compiled", "graph", "compiled graph")


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Run:
    """One network in training by one method in one mode."""

    def __init__(self, name: str, method: str, mode: str, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.args = args
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        self.model: AnytimeNetwork = create_model(name).to(args.device, memory_format=layout)
        self.model.train()
        self.parameters = list(self.model.parameters())
        self.combiner = METHODS[method]()
        stages = range(self.model.num_stages)
        if "compiled" in mode:
            whole = self.combiner.takes_one_pass(stages)
            compile_for_tasks(self.model, None if whole else self.model.called_nodes())
        self.optimizer = torch.optim.SGD(self.parameters, lr=1e-3, momentum=0.9)
        self.x = torch.randn(args.batch, 3, 32, 32).to(args.device, memory_format=layout)
        self.y = torch.randint(0, 10, (args.batch,), device=args.device)
        self.step: Callable[[Tensor, Tensor], Any] = self.take
        if "graph" in mode:
            make_capturable(self.optimizer, args.device)
            self.step = GraphedStep(
                self.take,
                args.device,
                kind=lambda: self.combiner.takes_one_pass(stages),
                replayed=self.replayed,
            )

    def take(self, x: Tensor, y: Tensor) -> None:
        bf16 = self.args.precision == "bf16"
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = self.model(x)
        losses = [F.cross_entropy(out.float(), y) for out in outputs]
        self.optimizer.zero_grad(set_to_none=True)
        self.combiner.backward(losses, self.parameters)
        self.optimizer.step()

    def replayed(self, single: bool) -> None:
        kept = getattr(self.combiner, "kept", None)
        if kept is not None:
            kept.count(refreshed=not single)

    def rate(self, steps: int) -> float:
        """Images per second over ``steps`` steps."""
        wait(self.args.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.step(self.x, self.y)
        wait(self.args.device)
        return steps * self.args.batch / (time.perf_counter() - start)


def multiply_adds(name: str, method: str) -> float:
    """Those that the method needs for one image of 32x32."""
    stages = [row.multiply_adds for row in create_model(name).cost(32)]
    exact = stages[-1] + 2 * sum(stages)
    sgd = 3 * stages[-1]
    return {"sgd": sgd, "exact": exact, "lazy": (exact + (REFRESH - 1) * sgd) / REFRESH}[method]


def ceiling(args: argparse.Namespace) -> float:
    """Multiply-adds per second of a large matrix product, the best of several."""
    size = 8192 if args.device.startswith("cuda") else 1024
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=args.device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        wait(args.device)
        start = time.perf_counter()
        torch.mm(a, b)
        wait(args.device)
        best = min(best, time.perf_counter() - start)
    return size**3 / best


def measure(name: str, args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """A model's rows, printed as they come."""
    runs = {
        (method, mode): Run(name, method, mode, args)
        for method in args.methods
        for mode in args.modes
    }
    settle = 4 * REFRESH if any("graph" in mode for mode in args.modes) else 2
    for run in runs.values():
        run.rate(settle)  # compiles, records
    found = interleave(
        {
            f"{method} {mode}": lambda run=run: run.rate(args.steps)
            for (method, mode), run in runs.items()
        },
        args.rounds,
        warm=1,
    )
    top = ceiling(args)
    rows = []
    for method, mode in runs:
        rates = spread(found[f"{method} {mode}"])
        share = rates["median"] * multiply_adds(name, method) / top
        rows.append(
            {
                "model": name,
                "method": method,
                "mode": mode,
                "batch": args.batch,
                "precision": args.precision,
                "images_per_second": rates,
                "ceiling_multiply_adds_per_second": top,
                "share_of_ceiling": share,
            }
        )
        shown = f"{ranged(rates, 0)} images/s, {100 * share:.1f} % of the ceiling"
        line = f"{name}  {method:6s} {mode:15s} {shown}"
        console.print(line, highlight=False, soft_wrap=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--steps", type=int, default=REFRESH, help="of one measurement; whole cycles"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--tf32", action="store_true", help="let float32 products use TF32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.steps % REFRESH and "lazy" in args.methods:
        parser.error(
            f"--steps must be a multiple of {REFRESH}, of whole cycles, found {args.steps}"
        )
    if not args.device.startswith("cuda"):
        args.modes = [mode for mode in args.modes if "graph" not in mode]
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    console = Console()
    report = {**surroundings(args.device), "rows": []}
    for name in args.models:
        report["rows"] += measure(name, args, console)
        if args.json:
            write_json(args.json, report)


if __name__ == "__main__":
    main()
