"""Forward and backward pass of a nested network, all stages, beside the plain one of full width.

    python benchmarks/nets.py --model width_nested_resnet42 --batch 64 --rounds 9
    python benchmarks/nets.py --small            # one training step of every small network

Each round times every variant once, in turn, in one process, and takes the ratios within the round,
so that a change of the machine's speed affects all variants alike. Prints medians with quartiles,
and JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from anynest import create_model, list_models, make_combiner
from anynest.nets import AnytimeNetwork
from anynest.nets.registry import is_nested

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def variants(name: str, layout: str) -> dict[str, AnytimeNetwork]:
    stages = create_model(name).num_stages
    built = {}
    for label, kernels, independent in (
        ("plain", "auto", stages),
        ("nested, dense", "auto", None),
        ("nested, stripes", "stripes", None),
    ):
        torch.manual_seed(0)
        model = create_model(name, independent=independent).to(memory_format=LAYOUTS[layout])
        model.kernels = kernels
        built[label] = model.train()
    return built


def step(model: AnytimeNetwork, x: torch.Tensor, y: torch.Tensor, bf16: bool) -> float:
    for parameter in model.parameters():
        parameter.grad = None
    start = time.perf_counter()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = model(x)
    torch.stack([F.cross_entropy(row.float(), y) for row in logits]).sum().backward()
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(
    name: str, batch: int, size: int, rounds: int, layout: str, bf16: bool, device: str
) -> list[dict]:
    x = torch.randn(batch, 3, size, size).to(device, memory_format=LAYOUTS[layout])
    y = torch.randint(0, 10, (batch,), device=device)
    models = {label: model.to(device) for label, model in variants(name, layout).items()}
    times: dict[str, list[float]] = {label: [] for label in models}
    for number in range(rounds + 2):
        for label, model in models.items():
            took = step(model, x, y, bf16)
            if number >= 2:  # the first rounds warm caches
                times[label].append(took)
    rows = []
    for label, took in times.items():
        ratios = [a / b for a, b in zip(took, times["plain"], strict=True)]
        low, middle, high = quartiles(ratios)
        rows.append(
            {
                "model": name,
                "variant": label,
                "precision": "bf16" if bf16 else "fp32",
                "layout": layout,
                "seconds": statistics.median(took),
                "ratio": middle,
                "ratio_quartiles": [low, high],
            }
        )
        print(
            f"{label:16s} {rows[-1]['precision']} {layout}  {1e3 * rows[-1]['seconds']:8.1f} ms   "
            f"{middle:.3f} of plain  [{low:.3f}, {high:.3f}]",
            flush=True,
        )
    return rows


def small(batch: int, rounds: int, layout: str, method: str) -> list[dict]:
    """A training step on images of 32x32 pixels, of each small network."""
    rows = []
    for name in filter(is_nested, list_models()):
        if any(size in name for size in ("42", "98", "50", "66")):
            continue
        model = create_model(name).train().to(memory_format=LAYOUTS[layout])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        combiner = make_combiner(method)
        x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
        x = x.to(memory_format=LAYOUTS[layout])

        def whole(
            model: AnytimeNetwork = model,
            optimizer: torch.optim.Optimizer = optimizer,
            combine: Callable = combiner.backward,
            x: torch.Tensor = x,
            y: torch.Tensor = y,
        ) -> float:
            start = time.perf_counter()
            optimizer.zero_grad()
            combine([F.cross_entropy(row, y) for row in model(x)], model.parameters())
            optimizer.step()
            return time.perf_counter() - start

        took = [whole() for _ in range(rounds + 2)][2:]
        low, middle, high = quartiles(took)
        rows.append(
            {
                "model": name,
                "seconds": middle,
                "quartiles": [low, high],
                "batch": batch,
                "layout": layout,
            }
        )
        rows[-1]["method"] = method
        print(
            f"{name:40s} {method:9s} {1e3 * middle:7.1f} ms  [{1e3 * low:.1f}, {1e3 * high:.1f}]",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="width_nested_resnet42")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32, help="4 shows a step's fixed cost")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "both"], default="fp32")
    parser.add_argument("--layout", choices=["nchw", "nhwc", "both"], default="nchw")
    parser.add_argument("--small", action="store_true", help="steps of the small networks instead")
    parser.add_argument("--methods", nargs="*", default=["sgd-mean", "osgd"], help="with --small")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {args.threads} threads, "
        f"batch {args.batch}"
    )
    rows = []
    if args.small:
        for layout in ("nchw", "nhwc") if args.layout == "both" else (args.layout,):
            for method in args.methods:
                rows += small(args.batch, args.rounds, layout, method)
    else:
        for precision in ("fp32", "bf16") if args.precision == "both" else (args.precision,):
            for layout in ("nchw", "nhwc") if args.layout == "both" else (args.layout,):
                rows += compare(
                    args.model,
                    args.batch,
                    args.image_size,
                    args.rounds,
                    layout,
                    precision == "bf16",
                    args.device,
                )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"torch": torch.__version__, "threads": args.threads, "rows": rows}, file, indent=1
            )


if __name__ == "__main__":
    main()
