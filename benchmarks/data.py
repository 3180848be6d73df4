"""Time of the input pipeline alone: shuffle, crop, mirror, normalise, per training batch.

    python benchmarks/data.py --threads 2

The images are random bytes of CIFAR's size (their content makes no difference) unless --source
names a set. The first line is what an epoch costs once (its order and its draws); it is part of
every batch's share in the last.
"""

import argparse
import statistics
import time

import torch

from anynest.data import Split, load, make_loader


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
    parser.add_argument("--source", help="a set of small images, as of `anynest train --data`")
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
    print(f"all told     {(start + median * (each - 1)) / each:.3f} ms a batch of {each} an epoch")


if __name__ == "__main__":
    main()
