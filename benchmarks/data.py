"""Time of the input pipeline per training batch, and its share of a training step.

    python benchmarks/data.py --threads 2 --model width_nested_resnet10

The pipeline shuffles, crops, mirrors and normalizes. The images are random bytes of CIFAR's size
(their content does not matter) unless --source names a data set. "epoch start" is the cost once per
epoch (its order and its draws); the last lines include its share of every batch.
"""

import argparse
import statistics
import time

import torch

from anynest import create_model, make_combiner
from anynest.data import Split, load, make_loader


def step_times(args: argparse.Namespace) -> list[float]:
    """Milliseconds of each training step (forward, backward, SGD's update) without the pipeline."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = create_model(args.model).to(args.device, memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    combiner = make_combiner(args.method)
    images = torch.randn(args.batch_size, 3, 32, 32).to(args.device, memory_format=layout)
    labels = torch.randint(0, 10, (args.batch_size,), device=args.device)
    taken: list[float] = []
    for number in range(args.steps + 2):
        began = time.perf_counter()
        losses = [torch.nn.functional.cross_entropy(out, labels) for out in model(images)]
        optimizer.zero_grad()
        combiner.backward(losses, model.parameters())
        optimizer.step()
        if args.device != "cpu":
            torch.cuda.synchronize()
        if number >= 2:
            taken.append((time.perf_counter() - began) * 1e3)
    return taken


def times(args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Milliseconds of (the start of each epoch, each batch after an epoch's first)."""
    if args.source:
        data = load(args.source)
        split, mean, std = data.train, data.mean, data.std
    else:
        images = torch.randint(0, 256, (args.images, 3, 32, 32), dtype=torch.uint8)
        split = Split(images, torch.zeros(args.images, dtype=torch.int64), "train")
        mean = std = (0.5,) * 3
    loader = make_loader(
        split,
        args.batch_size,
        train=True,
        mean=mean,
        std=std,
        device=args.device,
        channels_last=args.channels_last,
    )
    starts: list[float] = []
    batches: list[float] = []
    for epoch in range(args.epochs + 1):
        began = time.perf_counter()
        for number, _ in enumerate(loader.batches(epoch)):
            if args.device != "cpu":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if epoch:  # the first epoch warms up
                (batches if number else starts).append((now - began) * 1e3)
            began = time.perf_counter()
    return starts, batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument(
        "--source", help="a data set of small images, as for `anynest train --data`"
    )
    parser.add_argument("--model", help="time this network's training steps too")
    parser.add_argument(
        "--method", default="sgd-mean", help="method of these steps (default: the cheapest)"
    )
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    starts, batches = times(args)
    low, *_, high = statistics.quantiles(batches, n=10)
    start, median = statistics.median(starts), statistics.median(batches)
    each = len(batches) // len(starts) + 1
    print(
        f"torch {torch.__version__}, {args.device}, {args.threads} threads, batch {args.batch_size}"
    )
    print(f"epoch start  {start:.3f} ms (n={len(starts)}, with its first batch)")
    print(f"batch        {median:.3f} ms (n={len(batches)}, 10 % to 90 %: {low:.3f} to {high:.3f})")
    whole = (start + median * (each - 1)) / each
    print(f"in all       {whole:.3f} ms per batch, {each} batches per epoch")
    if args.model:
        steps = step_times(args)
        low, *_, high = statistics.quantiles(steps, n=10)
        middle = statistics.median(steps)
        print(
            f"step         {middle:.1f} ms (n={len(steps)}, 10 % to 90 %: {low:.1f} to {high:.1f}),"
            f" {args.model}, {args.method}"
        )
        print(f"share        {100 * whole / (whole + middle):.2f} % of a step")


if __name__ == "__main__":
    main()
