"""One stage of a nested transformer: a residual stream that reads the earlier stages' streams.

Each line is computed once, at stage s:

    x_s  = [class_s ; patches E_s] + positions_s
    z_s  = LN(x_s)                                        over its own channels
    o_s  = attention(q, k, v),   q, k, v = W_qkv [z_1 .. z_s]
    x_s += W_o [o_1 .. o_s]
    u_s  = LN(x_s);   a_s = GELU(W_1 [u_1 .. u_s])
    x_s += W_2 [a_1 .. a_s]

With no earlier stage this is the vision transformer of Dosovitskiy et al. (2021).

Legend: B batch, N tokens, d channels that the stage adds, D those up to it, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plan import TransformerPlan


class LayerState(NamedTuple):
    """What later stages read of one layer: z, o, u ``[B, N, d]`` and a ``[B, N, r d]``."""

    attention_input: Tensor
    attended: Tensor
    mlp_input: Tensor
    hidden: Tensor


class StripeState(NamedTuple):
    """What later stages read of a stage: its layers, and its normed class token ``[B, d]``."""

    layers: tuple[LayerState, ...]
    features: Tensor


def join(parts: Sequence[Tensor]) -> Tensor:
    """Stripes side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


class Layer(nn.Module):
    """Pre-norm attention and MLP of one stage.

    Args:
        width: d, the channels that the stage adds.
        total: D, the channels of this stage and the earlier ones.
        head_size: channels of a head.
        mlp_ratio: r, hidden channels of the MLP as a multiple of ``width``.
    """

    def __init__(self, width: int, total: int, head_size: int, mlp_ratio: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(total, 3 * width)
        self.proj = nn.Linear(total, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(total, mlp_ratio * width)
        self.fc2 = nn.Linear(mlp_ratio * total, width)

    def forward(self, x: Tensor, earlier: Sequence[LayerState]) -> tuple[Tensor, LayerState]:
        """The stage's stream ``[B, N, d]`` after the layer, and what later stages read."""
        z = self.norm1(x)
        o = self._attend(self.qkv(join([*(state.attention_input for state in earlier), z])))
        x = x + self.proj(join([*(state.attended for state in earlier), o]))
        u = self.norm2(x)
        a = F.gelu(self.fc1(join([*(state.mlp_input for state in earlier), u])))
        x = x + self.fc2(join([*(state.hidden for state in earlier), a]))
        return x, LayerState(z, o, u, a)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention of all heads, from ``[B, N, 3 d]`` to ``[B, N, d]``."""
        heads = qkv.view(*qkv.shape[:2], -1, self.head_size).transpose(
            1, 2
        )  # [B, 3 h, N, head_size]
        q, k, v = heads.chunk(3, dim=1)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Stripe(nn.Module):
    """The layers of one stage.

    Args:
        plan: the whole network's.
        stage: which one, from 1.
    """

    def __init__(self, plan: TransformerPlan, stage: int) -> None:
        super().__init__()
        width, patch = plan.widths[stage - 1], plan.patch_size
        total = plan.total_width(stage)
        self.grid = plan.image_size // patch
        self.reads = [plan.reads(stage, layer) for layer in plan.layers_of(stage)]
        self.embed = nn.Conv2d(plan.in_channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, self.grid**2 + 1, width))
        self.layers = nn.ModuleList(
            Layer(width, total, plan.head_size, plan.mlp_ratio) for _ in self.reads
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor, earlier: Sequence[StripeState]) -> StripeState:
        """Evaluate the stage on images ``[B, C, H, W]`` and what the earlier stages left."""
        x = self._tokens(images)
        states: list[LayerState] = []
        for layer, reads in zip(self.layers, self.reads, strict=True):
            x, state = layer(
                x, [stripe.layers[i] for stripe, i in zip(earlier, reads, strict=True)]
            )
            states.append(state)
        return StripeState(tuple(states), self.norm(x[:, 0]))

    def _tokens(self, images: Tensor) -> Tensor:
        """The class token and the patches with their positions, ``[B, N, d]``."""
        patches = self.embed(images)
        positions: Tensor = self.positions
        if tuple(patches.shape[2:]) != (self.grid, self.grid):
            positions = self._interpolated((patches.shape[2], patches.shape[3]))
        tokens = patches.flatten(2).transpose(1, 2) + positions[:, 1:]
        first = self.class_token + positions[:, :1]
        return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def _interpolated(self, grid: tuple[int, int]) -> Tensor:
        """The positional embeddings of a grid of (height, width) patches."""
        square = self.positions[:, 1:].transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
