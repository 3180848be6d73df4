"""Real backbones of other libraries, small and with random weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from segment_checks import check
from torch import Tensor

import anynest
from anynest.nets import Exit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of the libraries
]


def images(side: int) -> Callable[[int], list[Tensor]]:
    return lambda batch: [torch.randn(batch, 3, side, side)]


def build(torchvision: Any, timm: Any, transformers: Any, name: str) -> tuple[Any, Any, bool]:
    """The network, a function from the batch size to inputs, and whether bits are equal."""
    if name == "densenet121":  # a cut inside a dense block
        body = torchvision.models.densenet121(num_classes=10)
        after: dict[str, Any] = {
            "features.denseblock2.denselayer4": "auto",
            "features.transition3": "auto",
        }
        return anynest.add_exits(body, torch.randn(2, 3, 64, 64), 10, after), images(64), True
    if name == "efficientnet_b0":
        body = torchvision.models.efficientnet_b0(num_classes=10)
        after = {"features.2": "auto", "features.4.1": "auto"}
        return anynest.add_exits(body, torch.randn(2, 3, 64, 64), 10, after), images(64), True
    if name == "vit_tiny":
        body = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=10
        )
        after = {"blocks.0": "auto", "blocks.1": "mean"}
        return anynest.add_exits(body, torch.randn(2, 3, 32, 32), 10, after), images(32), True
    if name == "swin":
        return anynest.add_exits(swin(timm), torch.randn(2, 3, 64, 64), 10, SWIN), images(64), True
    if name == "bert":
        config = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
            vocab_size=100, num_labels=4,
        )  # fmt: skip
        body = transformers.BertForSequenceClassification(config)
        tokens = torch.randint(0, 100, (2, 7))
        example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        after = {
            "bert.encoder.layer.0": "auto",
            "bert.encoder.layer.1": Exit("mean", lambda out: out),
        }
        return anynest.add_exits(body, example, 4, after, output="logits"), padded, True
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, num_labels=10,
    )  # fmt: skip
    body = transformers.ViTForImageClassification(config)
    layers = [n for n, m in body.named_modules() if type(m).__name__ == "ViTLayer"]
    after = {layers[0]: "auto", layers[1]: "auto"}
    example = {"pixel_values": torch.randn(2, 3, 32, 32)}
    return anynest.add_exits(body, example, 10, after, output="logits"), images(32), True


SWIN = {"layers.0": "nhwc", "layers.1.blocks.0": "nhwc"}


def swin(timm: Any) -> Any:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=10,
    )  # fmt: skip


def padded(batch: int) -> list[Tensor]:
    """Tokens and their mask; the length changes with the batch."""
    length = 5 + batch
    mask = (torch.arange(length) < torch.randint(2, length + 1, (batch, 1))).long()
    return [torch.randint(0, 100, (batch, length)), mask]


@pytest.mark.parametrize(
    "name", ["densenet121", "efficientnet_b0", "vit_tiny", "swin", "bert", "hf_vit"]
)
def test_backbone(torchvision: Any, timm: Any, transformers: Any, name: str) -> None:
    model, make, exact = build(torchvision, timm, transformers, name)
    check(model, make, exact=exact)
    costs = model.cost()
    assert sum(c.own_parameters for c in costs) == sum(p.numel() for p in model.parameters())
    assert all(cost.own_multiply_adds > 0 for cost in costs)


def test_swin_cut_inside_attention(timm: Any) -> None:
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"nearest places that have: 'layers.0.blocks.0.norm1', "):
        anynest.add_exits(swin(timm), x, 10, {"layers.0.blocks.0.attn.qkv": "auto"})
    windows = Exit("mean", lambda y: y.reshape(-1, 16 * y.shape[1], y.shape[2]))
    with pytest.raises(ValueError, match=r"found \[16\*s\d+, 16, 72\] carried on") as caught:
        anynest.add_exits(swin(timm), x, 10, {"layers.0.blocks.0.attn.qkv": windows})
    assert "work: 'layers.0.blocks.0.norm1', 'layers.0.blocks.0.norm2'" in str(caught.value)
    for place, head in (("norm1", "nhwc"), ("norm2", "mean")):
        after = {f"layers.0.blocks.0.{place}": head}
        assert anynest.add_exits(swin(timm), x, 10, after).segments()


def test_each_loss_reaches_its_own_layers(torchvision: Any) -> None:
    body = torchvision.models.resnet18(num_classes=10)
    model = anynest.add_exits(body, torch.randn(2, 3, 32, 32), 10, {"layer1": "auto"})
    first, last = model(torch.randn(2, 3, 32, 32))
    names = [name for name, _ in model.named_parameters()]
    for output, reached in (
        (first, {n for n in names if n.startswith(("conv1", "bn1", "layer1", "exits"))}),
        (last, {n for n in names if not n.startswith("exits")}),
    ):
        parameters = list(model.parameters())
        found = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
        assert {n for n, g in zip(names, found, strict=True) if g is not None} == reached
