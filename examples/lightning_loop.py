"""Lightning: mixed precision, clipping, gradient accumulation and several ranks, with many losses.

    python examples/lightning_loop.py
    torchrun --standalone --nproc-per-node 2 examples/lightning_loop.py

With several ranks the combiner reduces gradients, so the strategy must not wrap the module.
"""

import os

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from anynest import OSGD

MICRO_BATCHES = 2


class Unwrapped(DDPStrategy):
    def configure_ddp(self) -> None:
        """Leave the module as it is, without DistributedDataParallel."""


class TwoTasks(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.value, self.label = nn.Linear(32, 1), nn.Linear(32, 3)
        self.seen: list[Tensor] = []

    def on_fit_start(self) -> None:
        group = torch.distributed.group.WORLD if self.trainer.world_size > 1 else None
        self.combiner = OSGD(priority=["value", "label"], group=group)

    def training_step(self, batch: list[Tensor], number: int) -> None:
        x, value, label = batch
        features = self.trunk(x)
        losses = {
            "label": F.cross_entropy(self.label(features).float(), label) / MICRO_BATCHES,
            "value": F.mse_loss(self.value(features).float()[:, 0], value) / MICRO_BATCHES,
        }
        self.combiner.accumulate(losses)
        if (number + 1) % MICRO_BATCHES == 0:
            stats = self.combiner.combine()
            optimizer = self.optimizers()
            self.clip_gradients(optimizer, 5.0, "norm")
            optimizer.step()
            optimizer.zero_grad()
            self.log_dict(stats.log_dict("train/"))
            self.seen.append(stats.losses)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(epochs: int = 4) -> tuple[TwoTasks, pl.Trainer]:
    pl.seed_everything(0, verbose=False)  # equal weights on all ranks
    x = torch.randn(1024, 8)
    data = TensorDataset(x, x[:, 0] + x[:, 1].sin(), x[:, 3:6].argmax(dim=1))
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=ranks, precision="bf16-mixed", logger=False,
        strategy=Unwrapped(process_group_backend="gloo") if ranks > 1 else "auto",
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module := TwoTasks(), DataLoader(data, batch_size=32, shuffle=True))
    if trainer.is_global_zero:
        for losses in (module.seen[0], torch.stack(module.seen[-8:]).mean(0)):
            print("losses", ", ".join(f"{loss:.3f}" for loss in losses.tolist()))
    return module, trainer


if __name__ == "__main__":
    train()
