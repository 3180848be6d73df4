"""Heads that fit an activation: pooling, and a linear layer.

Legend: B batch, C channels, H height, W width, N tokens, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .values import Read

# what is pooled -> the rank of the activation
KINDS = {"auto": None, "nchw": 4, "nhwc": 4, "mean": 3, "cls": 3, "last": 3}
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding")


@dataclass(frozen=True)
class Exit:
    """An exit: its head, and which tensor of the module's output it reads.

    Attributes:
        head: ``"auto"``, another of ``KINDS``, or a module.
        read: an index, a key or field, or a function of the module's output; None reads the output,
            or the first tensor that it holds.
    """

    head: nn.Module | str = "auto"
    read: Read = None


class Pool(nn.Module):
    """Reduce an activation to features ``[B, C]``.

    Args:
        kind: ``"nchw"`` and ``"nhwc"`` take the mean over H and W, ``"mean"`` that over the tokens
            of ``[B, N, C]``, ``"cls"`` the first token, ``"last"`` the last one.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, C]``."""
        if self.kind == "cls":
            return x[:, 0]
        if self.kind == "last":
            return x[:, -1]
        return x.mean(dim={"nchw": (2, 3), "nhwc": (1, 2), "mean": (1,)}[self.kind])

    def extra_repr(self) -> str:
        return self.kind


def has_class_token(body: nn.Module, input_names: tuple[str, ...]) -> bool:
    """Whether the first token stands for the sequence.

    So where a parameter is named a class token, and where padding is masked, which would enter a
    mean.
    """
    names = (name.rpartition(".")[2] for name, _ in body.named_parameters())
    return "attention_mask" in input_names or any(name in _CLASS_TOKENS for name in names)


def make_head(
    kind: str, activation: Tensor, num_classes: int | None, class_token: bool, name: str
) -> nn.Module:
    """A head for an activation ``[B, C, H, W]``, ``[B, N, C]`` or ``[B, C]``.

    Args:
        kind: one of ``KINDS``.
        activation: an example of it; the head has its type and device.
        num_classes: K.
        class_token: whether ``"auto"`` reads the first token of ``[B, N, C]`` rather than the mean.
        name: the exit's, for messages.

    Raises:
        ValueError: an unknown kind, an activation of another rank, or no number of classes.
    """
    shape = list(activation.shape)
    if kind not in KINDS:
        raise ValueError(
            f"the head of {name!r} must be a module or one of {', '.join(KINDS)}, found {kind!r}"
        )
    if num_classes is None:
        raise ValueError(f"the head {kind!r} of {name!r} needs num_classes=, found None")
    if not activation.is_floating_point() or len(shape) not in (2, 3, 4):
        raise ValueError(
            f"the head {kind!r} of {name!r} needs a floating-point activation of 2, 3 or 4 "
            f"dimensions, found {shape} {activation.dtype}; give a module"
        )
    if kind == "auto" and len(shape) == 4:
        if shape[1] == shape[2] != shape[3]:
            raise ValueError(
                f"the activation of {name!r} looks like [batch, height, width, channels], found "
                f"{shape}; say 'nhwc', or 'nchw' for channels in dimension 1"
            )
        kind = "nchw"
    elif kind == "auto" and len(shape) == 3:
        kind = "cls" if class_token else "mean"
    elif kind != "auto" and KINDS[kind] != len(shape):
        raise ValueError(
            f"the head {kind!r} of {name!r} needs {KINDS[kind]} dimensions, found {shape}"
        )
    channels = shape[1] if kind == "nchw" else shape[-1]
    layers: list[nn.Module] = [] if kind == "auto" else [Pool(kind)]
    if len(shape) == 3:
        layers.append(nn.LayerNorm(channels))
    layers.append(nn.Linear(channels, num_classes))
    return nn.Sequential(*layers).to(activation.device, activation.dtype)
