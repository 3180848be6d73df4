"""Accelerate: its devices, mixed precision and gradient accumulation, with many losses.

pip install accelerate
python examples/accelerate_loop.py
accelerate launch --num_processes 2 examples/accelerate_loop.py
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from anynest import OSGD, create_model


def train(epochs: int = 2, precision: str = "bf16", micro_batches: int = 2) -> list[list[float]]:
    """The mean losses of both outputs, epoch by epoch."""
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=micro_batches)
    labels = torch.arange(256) % 4
    images = torch.randn(256, 3, 8, 8) + labels[:, None, None, None]
    loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
    model = create_model("depth_nested_sparse_resnet14", num_classes=4, base_width=4)
    model.to(accelerator.device)  # not prepared: DistributedDataParallel is not needed
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer, loader = accelerator.prepare(optimizer, loader)
    many = accelerator.num_processes > 1
    combiner = OSGD(group=torch.distributed.group.WORLD if many else None)
    scaler = accelerator.scaler  # of float16, else None

    means = []
    for _ in range(epochs):
        seen = []
        for x, y in loader:
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    losses = [F.cross_entropy(out.float(), y) for out in model(x)]
                seen.append(torch.stack(losses).detach())
                # accelerator.backward takes the gradient of one loss. The combiner takes each loss's
                # own, so what else it does is said here: dividing by the micro-batches and scaling.
                named = {f"exit{i}": loss / micro_batches for i, loss in enumerate(losses, 1)}
                scale = 1.0
                if scaler is not None:
                    named = {name: scaler.scale(loss) for name, loss in named.items()}
                    scale = scaler.get_scale()
                combiner.accumulate(named, loss_scale=scale, samples=len(y))
                if accelerator.sync_gradients:  # the last micro-batch of a step
                    combiner.combine()
                optimizer.step()  # these two wait for the last micro-batch by themselves
                optimizer.zero_grad()
        means.append(accelerator.reduce(torch.stack(seen).mean(dim=0), "mean").tolist())
        accelerator.print("losses " + ", ".join(f"{loss:.3f}" for loss in means[-1]))
    accelerator.end_training()  # ranks leave their group together
    return means


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16", "fp16"])
    args = parser.parse_args()
    train(args.epochs, args.precision)
