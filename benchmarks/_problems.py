"""What a training step is timed on: a network with S outputs, and one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anynest import create_model


@dataclass(frozen=True, eq=False)
class Problem:
    """A network and a batch, the same for every variant.

    ``build(plain)`` makes the network anew, always with the same weights; ``plain`` asks for one
    kernel a node and autograd alone, without this library's fused kernels.
    """

    name: str
    build: Callable[[bool], nn.Module]
    x: Tensor
    y: Tensor
    has_plain: bool = False

    def losses(self, model: nn.Module) -> list[Tensor]:
        return [F.cross_entropy(logits, self.y) for logits in model(self.x)]


class ResNet20(nn.Module):
    """A plain ResNet-20 (16, 32, 64 channels; 273 k parameters) with an exit after each group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.groups = nn.ModuleList()
        before = 16
        for width in (16, 32, 64):
            blocks = [Block(before, width), Block(width, width), Block(width, width)]
            self.groups.append(nn.Sequential(*blocks))
            before = width
        self.heads = nn.ModuleList(nn.Linear(width, 10) for width in (16, 32, 64))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.stem(x))
        logits = []
        for group, head in zip(self.groups, self.heads, strict=True):
            x = group(x)
            logits.append(head(x.mean(dim=(2, 3))))
        return logits


class Block(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = (
            nn.Identity()
            if before == width
            else nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ManyHeads(nn.Module):
    """A plain network of several tasks: one trunk, S heads of two layers."""

    def __init__(self, tasks: int, features: int = 256, width: int = 256, depth: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(width if i else features, width), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in range(tasks)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        shared = self.trunk(x)
        return [head(shared) for head in self.heads]


class Transformer(nn.Module):
    """12 pre-norm blocks of 12 width^2 weights each and a linear head per task on the mean token.

    With ``rank`` the blocks are frozen, and their linear layers get trainable adapters of that
    rank, as LoRA has them.
    """

    def __init__(self, tasks: int, width: int, rank: int = 0, depth: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(depth))
        if rank:
            self.requires_grad_(False)
            for block in self.blocks:
                block.adapt(rank)
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        for block in self.blocks:
            x = block(x)
        token = x.mean(dim=1)
        return [head(token) for head in self.heads]


class TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def adapt(self, rank: int) -> None:
        for name in ("qkv", "out", "up", "down"):
            setattr(self, name, Adapted(getattr(self, name), rank))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Adapted(nn.Module):
    """A frozen linear layer plus a trainable product of two thin ones."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.thin = nn.Linear(frozen.in_features, rank, bias=False)
        self.wide = nn.Linear(rank, frozen.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.wide(self.thin(x))


def images(
    batch: int, size: int, device: str, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """Random images of the sizes of CIFAR-10 and random labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator)
    y = torch.randint(0, 10, (batch,), generator=generator)
    return x.to(device, memory_format=layout), y.to(device)


def network(
    name: str, batch: int, size: int, device: str = "cpu", channels_last: bool = False
) -> Problem:
    """A registered network, ``resnet20`` with three exits, or a transformer.

    A transformer is named ``transformer-WIDTH-TASKS-TOKENS``, one with adapters of rank 8
    ``lora-WIDTH-TASKS-TOKENS``.
    """
    kind, *numbers = name.split("-")
    if kind in ("transformer", "lora"):
        return transformer(name, *map(int, numbers), batch=batch, device=device)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def build(plain: bool) -> nn.Module:
        torch.manual_seed(0)
        if name == "resnet20":
            model: nn.Module = ResNet20()
        else:
            model = create_model(name)
            if plain:
                model.kernels = "stripes"
        return model.to(device, memory_format=layout).train()

    x, y = images(batch, size, device, layout)
    return Problem(name, build, x, y, has_plain=name != "resnet20")


def many_heads(tasks: int, batch: int, device: str = "cpu", width: int = 256) -> Problem:
    """``ManyHeads`` on random vectors."""

    def build(plain: bool) -> nn.Module:
        torch.manual_seed(0)
        return ManyHeads(tasks, width=width).to(device).train()

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 256, generator=generator).to(device)
    y = torch.randint(0, 10, (batch,), generator=generator).to(device)
    return Problem(f"{tasks} heads, width {width}", build, x, y)


def transformer(
    name: str, width: int, tasks: int, tokens: int, *, batch: int, device: str
) -> Problem:
    """``Transformer`` on random tokens."""

    def build(plain: bool) -> nn.Module:
        torch.manual_seed(0)
        return Transformer(tasks, width, 8 if name.startswith("lora") else 0).to(device).train()

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, width, generator=generator).to(device)
    y = torch.randint(0, 10, (batch,), generator=generator).to(device)
    return Problem(name, build, x, y)
