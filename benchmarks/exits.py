"""Exits for any network: what they cost, and which backbones can be cut.

    python benchmarks/exits.py --rounds 15               # the three ratios
    python benchmarks/exits.py --backbones               # a Markdown table of backbones

Each round times every variant once, in turn, in one process; ratios are taken within the round.

- inference: all stages one after the other, through a session, over the plain body;
- first: the first stage over the same layers and head called alone;
- training: forward and backward pass of all losses over the same body with exits written by hand.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _rounds import interleave, ratios, spread
from torch import Tensor, nn

import anynest
from anynest.engines.open import open_session
from anynest.engines.session import stages
from anynest.nets import Exit, ExitNetwork

GOALS = {"inference": 1.03, "first": 1.10, "training": 1.02}


# -- networks ---------------------------------------------------------------------------------------
def torchvision_models() -> Any:
    """torchvision, whose import needs two operators that a wheel for another torch lacks."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a) -> Tensor"):
        try:
            library.define(operator)
        except RuntimeError:
            continue
    import torchvision

    torchvision._operators = library
    return torchvision.models


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer of 12 blocks for images of 64x64 pixels."""

    def __init__(self, width: int = 192, depth: int = 12, classes: int = 10) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, stride=8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.ModuleList(Block(width, width // 64) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def embed(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.position

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def resnet() -> tuple[nn.Module, dict[str, str], Callable[..., list[Tensor]]]:
    """ResNet-18, its exits, and a forward pass with exits written by hand up to a stage."""

    def by_hand(body: Any, exits: nn.ModuleDict, x: Tensor, last: int) -> list[Tensor]:
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        outputs = []
        for stage, layer in enumerate((body.layer1, body.layer2, body.layer3), 1):
            x = layer(x)
            outputs.append(exits[str(stage)](x))
            if stage == last:
                return outputs
        return [*outputs, body.fc(torch.flatten(body.avgpool(body.layer4(x)), 1))]

    after = dict.fromkeys(("layer1", "layer2", "layer3"), "auto")
    return torchvision_models().resnet18(num_classes=10), after, by_hand


def vit() -> tuple[nn.Module, dict[str, str], Callable[..., list[Tensor]]]:
    """The ViT, with exits after blocks 3, 6 and 9."""

    def by_hand(body: Any, exits: nn.ModuleDict, x: Tensor, last: int) -> list[Tensor]:
        x = body.embed(x)
        outputs = []
        for number, block in enumerate(body.blocks, 1):
            x = block(x)
            if number in (3, 6, 9):
                outputs.append(exits[str(number // 3)](x))
                if number // 3 == last:
                    return outputs
        return [*outputs, body.head(body.norm(x)[:, 0])]

    return ViT(), dict.fromkeys(("blocks.2", "blocks.5", "blocks.8"), "auto"), by_hand


NETWORKS = {"resnet18": resnet, "vit12": vit}


# -- measurements -----------------------------------------------------------------------------------
def seconds(call: Callable[[], Any], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def measure(
    name: str, batch: int, rounds: int, repeat: int, threads: int, backend: str
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    body, after, by_hand = NETWORKS[name]()
    x = torch.randn(batch, 3, 64, 64)
    y = torch.randint(0, 10, (batch,))
    model = anynest.add_exits(body, torch.randn(2, 3, 64, 64), 10, after).eval()
    plain = copy.deepcopy(body).eval()
    exits = copy.deepcopy(model.exits)
    session = open_session(model, backend=backend, threads=threads)
    torch.set_num_threads(threads)

    def all_stages() -> None:
        evaluation = session.begin(x)
        for _ in stages(evaluation):
            pass
        evaluation.close()

    def first_stage() -> None:
        evaluation = session.begin(x)
        while evaluation.step() is None:
            pass
        evaluation.close()

    def hand(last: int) -> Callable[[], Any]:
        def call() -> None:
            with torch.no_grad():
                by_hand(plain, exits, x, last)

        return call

    def whole() -> None:
        with torch.no_grad():
            plain(x)

    def train(network: nn.Module, forward: Callable[[], list[Tensor]]) -> Callable[[], None]:
        def call() -> None:
            network.train(), exits.train()
            for parameter in (*network.parameters(), *exits.parameters()):
                parameter.grad = None
            torch.stack([F.cross_entropy(row, y) for row in forward()]).sum().backward()
            network.eval(), exits.eval()

        return call

    entries = {
        "plain body": whole,
        "all stages": all_stages,
        "first layers": hand(1),
        "first stage": first_stage,
        "trained by hand": train(plain, lambda: by_hand(plain, exits, x, 0)),
        "trained with exits": train(model, lambda: model(x)),
    }
    if backend == "onnxruntime":  # the same engine on both sides
        entries |= onnx_entries(body, model, exits, x, threads)
    timed = {key: (lambda call=call: seconds(call, repeat)) for key, call in entries.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = interleave(timed, rounds)
    rows = []
    for what, ours, theirs in (
        ("inference", "all stages", "plain body"),
        ("first", "first stage", "first layers"),
        ("training", "trained with exits", "trained by hand"),
    ):
        if what == "training" and backend != "torch":
            continue
        ratio = spread(ratios(times[ours], times[theirs]))
        row = {"network": name, "backend": backend, "batch": batch, "what": what, "ratio": ratio}
        row |= {"ms": 1e3 * spread(times[ours])["median"], "goal": GOALS[what]}
        row["base_ms"] = 1e3 * spread(times[theirs])["median"]
        rows.append(row)
        print(
            f"| {name} | {backend} | {batch} | {what} | {row['ms']:.2f} | {row['base_ms']:.2f} | "
            f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] | {GOALS[what]} |",
            flush=True,
        )
    return rows


def onnx_entries(
    body: nn.Module, model: ExitNetwork, exits: nn.ModuleDict, x: Tensor, threads: int
) -> dict[str, Callable[[], Any]]:
    """The plain body, and the first layers with their head, each as one ONNX graph."""
    import io

    import onnxruntime

    def run_of(module: nn.Module) -> Callable[[], Any]:
        program = torch.onnx.export(module.eval(), (x,), dynamo=True, verbose=False)
        buffer = io.BytesIO()
        program.save(buffer)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        run = onnxruntime.InferenceSession(buffer.getvalue(), options)
        given = {run.get_inputs()[0].name: x.numpy()}
        return lambda: run.run(None, given)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.segment = copy.deepcopy(model.segments()[0])

        def forward(self, x: Tensor) -> Tensor:
            return self.segment(x)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"plain body": run_of(copy.deepcopy(body)), "first layers": run_of(First())}


# -- backbones --------------------------------------------------------------------------------------
def backbones() -> dict[str, Callable[[], tuple[ExitNetwork, list[Tensor]]]]:
    """Name and exits -> the network and inputs, small where sizes can be chosen."""
    models = torchvision_models()
    import timm
    import transformers

    def image(body: nn.Module, after: dict[str, Any], side: int, **more: Any) -> Any:
        x = torch.randn(3, 3, side, side)
        example = {"pixel_values": x[:2]} if more else x[:2]
        return anynest.add_exits(body, example, 10, after, **more), [x]

    def swin(after: dict[str, Any]) -> Any:
        body = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, num_classes=10
        )
        return image(body, after, 64)

    def bert() -> Any:
        config = transformers.BertConfig(num_hidden_layers=4, hidden_size=128, num_labels=10)
        config.num_attention_heads, config.intermediate_size = 2, 512
        tokens = torch.randint(0, 1000, (3, 12))
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        after = {f"bert.encoder.layer.{n}": "auto" for n in (0, 2)}
        body = transformers.BertForSequenceClassification(config)
        return anynest.add_exits(body, inputs, 10, after, output="logits"), list(inputs.values())

    def hf_vit() -> Any:
        config = transformers.ViTConfig(
            hidden_size=64, num_hidden_layers=4, num_attention_heads=2, intermediate_size=128,
            image_size=64, patch_size=8, num_labels=10,
        )  # fmt: skip
        body = transformers.ViTForImageClassification(config)
        layers = [name for name, part in body.named_modules() if type(part).__name__ == "ViTLayer"]
        return image(body, {layers[1]: "auto"}, 64, output="logits")

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 16), nn.Linear(32, 10)
            self.one, self.two = (
                nn.LSTM(16, 32, batch_first=True),
                nn.LSTM(32, 32, batch_first=True),
            )

        def forward(self, x: Tensor) -> Tensor:
            x, state = self.one(self.embed(x))
            return self.head(self.two(x, state)[0][:, -1])

    def lstm() -> Any:
        tokens = torch.randint(0, 50, (3, 9))
        return anynest.add_exits(Recurrent(), tokens, 10, {"one": "last"}), [tokens]

    def mlp() -> Any:
        body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 10))
        x = torch.randn(3, 8)
        return anynest.add_exits(body, x, 10, {"1": "auto", "2": Exit("auto")}), [x]

    small_vit: dict[str, Any] = {"img_size": 64, "patch_size": 8, "num_classes": 10}
    return {
        "torchvision ResNet-18, after layers 1 to 3": lambda: image(
            models.resnet18(num_classes=10),
            dict.fromkeys(("layer1", "layer2", "layer3"), "auto"),
            64,
        ),
        "torchvision DenseNet-121, in a dense block": lambda: image(
            models.densenet121(num_classes=10), {"features.denseblock2.denselayer4": "auto"}, 64
        ),
        "torchvision EfficientNet-B0, after features 2 and 4": lambda: image(
            models.efficientnet_b0(num_classes=10), {"features.2": "auto", "features.4": "auto"}, 64
        ),
        "timm ViT-Ti/8, after blocks 3 and 7": lambda: image(
            timm.create_model("vit_tiny_patch16_224", **small_vit),
            {"blocks.3": "auto", "blocks.7": "auto"},
            64,
        ),
        "timm Swin-T, after layers 0 and 1": lambda: swin({"layers.0": "nhwc", "layers.1": "nhwc"}),
        "timm Swin-T, inside attention": lambda: swin({"layers.0.blocks.0.attn.qkv": "auto"}),
        "timm ConvNeXt-atto, after stages 0 and 2": lambda: image(
            timm.create_model("convnext_atto", num_classes=10),
            {"stages.0": "auto", "stages.2": "auto"},
            64,
        ),
        "transformers BERT, after layers 0 and 2": bert,
        "transformers ViT, after layer 1": hf_vit,
        "LSTM, after the first of two": lstm,
        "MLP": mlp,
    }


def tabulate(names: list[str] | None) -> list[str]:
    """A Markdown table: the greatest difference of any stage, and the carried tensors."""
    lines = [
        "| backbone | stages | greatest difference from forward | carried tensors |",
        "|---|---|---|---|",
    ]
    for name, make in backbones().items():
        if names and not any(part in name for part in names):
            continue
        torch.manual_seed(0)
        try:
            model, inputs = make()
        except ValueError as error:
            lines.append(f"| {name} | refused | | {str(error).partition('; ')[2]} |")
            continue
        model.eval()
        with torch.no_grad():
            wanted, state, carried, worst = model(*inputs), list(inputs), [], 0.0
            for segment, output in zip(model.segments(), wanted, strict=True):
                found, *state = segment(*state)
                worst = max(worst, float((found - output).abs().max()))
                carried.append(len(state))
        exact = "0, bit for bit" if worst == 0 else f"{worst:.1e}"
        shown = ", ".join(map(str, carried[:-1]))
        lines.append(f"| {name} | {model.num_stages} | {exact} | {shown} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument(
        "--backends", nargs="+", choices=["torch", "onnxruntime"], default=["torch"]
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeat", type=int, default=5, help="calls a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backbones", nargs="*", metavar="PART", help="the table instead")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.backbones is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print("\n".join(tabulate(args.backbones)))
        return
    print(f"torch {torch.__version__}, {platform.machine()}, {args.threads} threads, 64x64\n")
    print("| network | engine | batch | what | ms | base, ms | ratio [quartiles] | goal |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for name in args.networks:
        for backend in args.backends:
            for batch in args.batches:
                rows += measure(name, batch, args.rounds, args.repeat, args.threads, backend)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"torch": torch.__version__, "threads": args.threads, "rows": rows}, file)


if __name__ == "__main__":
    main()
