"""Stages, segments and the forward pass give the same outputs, and compute nothing twice."""

import copy
import io
from typing import Any

import pytest
import torch
from segment_checks import check, walk
from torch import Tensor, nn

import anynest
from anynest.nets import Exit, Staged


class DenseBlock(nn.Module):
    """Each layer reads all before it; batch norm, dropout and in-place ReLUs on what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(15, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for layer, norm in zip(self.layers, self.norms, strict=True):
            new = self.drop(self.relu(norm(layer(features))))
            features = torch.cat([features, new], dim=1)
        return self.head(features.mean((2, 3)))


@pytest.mark.slow
def test_dense_block() -> None:
    body = DenseBlock()
    model = anynest.add_exits(body, torch.randn(2, 3, 8, 8), 5, {"norms.0": "auto", "drop": "auto"})
    assert isinstance(model, Staged)
    assert (model.num_stages, model.num_classes, model.in_channels) == (3, 5, 3)
    assert model.input_names == ("x",)
    check(model, lambda batch: [torch.randn(batch, 3, 8, 8)])
    check(model, lambda batch: [torch.randn(batch, 3, 6, 10)])  # another size
    (cost1, cost2, cost3) = model.cost()
    assert cost1.own_multiply_adds == 64 * 9 * 3 * 4 + 4 * 5
    assert cost2.own_multiply_adds == 64 * 9 * (7 + 11) * 4 + 4 * 5
    assert cost3.own_multiply_adds == 15 * 5
    assert cost3.parameters == sum(p.numel() for p in model.parameters())


class Recurrent(nn.Module):
    """Integer inputs, a sequence whose batch is dimension 1 within, and a dict of results."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.one = nn.LSTM(6, 8)
        self.two = nn.LSTM(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x, state = self.one(self.embed(tokens).transpose(0, 1))
        x, _ = self.two(x, state)
        return {"hidden": x, "logits": self.head(x[-1])}


def test_recurrent() -> None:
    tokens = torch.randint(0, 20, (2, 7))
    model = anynest.add_exits(
        Recurrent(),
        {"tokens": tokens},
        3,
        {"one": Exit("last", lambda out: out[0].transpose(0, 1))},
        output="logits",
    )
    assert (model.in_channels, model.input_names) == (None, ("tokens",))
    check(model, lambda batch: [torch.randint(0, 20, (batch, 7))])
    check(model, lambda batch: [torch.randint(0, 20, (batch, 4))])


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )


def test_parameters_are_the_networks_own() -> None:
    """Segments see later training, casts and replaced parameters."""
    body = mlp()
    x = torch.randn(3, 4)
    model = anynest.add_exits(body, x, 3, {"1": "auto", "3": "auto"}).eval()

    def same() -> None:
        wanted = model(x)
        torch.testing.assert_close([y for _, y in model.stages(x)], wanted, rtol=0, atol=0)
        torch.testing.assert_close(walk(model.segments(), [x]), wanted, rtol=0, atol=0)

    before = model.segments()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.stack([y.sum() for y in model(x)]).sum().backward()
    optimizer.step()
    same()
    assert model.segments() is before
    body[2].weight = nn.Parameter(torch.randn(8, 8))
    same()
    assert model.segments() is not before
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, assign=True)
    same()
    model.double()
    x = x.double()
    same()
    body[4] = nn.Linear(8, 3).double()
    model._modules["4"] = body[4]
    same()


def test_copies_have_parameters_of_their_own() -> None:
    x = torch.randn(2, 4)
    model = anynest.add_exits(mlp(), x, 3, {"1": "auto"}).eval()
    twin = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    wanted = model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in (twin, loaded):
        assert list(other.state_dict()) == list(model.state_dict())
        torch.testing.assert_close([y for _, y in other.stages(x)], wanted, rtol=0, atol=0)
        other.train()
        assert other.body.training
        assert all(module.training for module in other.body.modules())


@pytest.mark.slow
def test_resnet18(torchvision: Any) -> None:
    body = torchvision.models.resnet18(num_classes=10)
    after = {"layer3": "auto", "layer1": "auto", "layer2.0.conv1": "auto"}
    model = anynest.add_exits(body, torch.randn(2, 3, 64, 64), 10, after)
    assert model.exit_names == ("layer1", "layer2.0.conv1", "layer3")
    check(model, lambda batch: [torch.randn(batch, 3, 64, 64)])


class InPlace(nn.Module):
    """In-place operations on what is carried, read by exits, viewed, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.tap = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.layers[0](x)
        b = self.layers[1](a)
        half = a[:, :3]  # a view, which the next line changes
        a.mul_(2)
        b = b.relu_()
        b += a
        c = self.tap(self.layers[2](b))
        left, right = c.chunk(2, dim=1)  # so do views of one result of several
        left.add_(1)
        c = torch.sigmoid_(c)
        return torch.cat([self.layers[3](c)[:, :2] + half[:, :2] + right[:, :2], b[:, :1]], 1)


@pytest.mark.parametrize("names", [["layers.0"], ["layers.1"], ["tap"], ["layers.0", "layers.2"]])
def test_in_place_operations(names: list[str]) -> None:
    model = anynest.add_exits(
        InPlace(), torch.randn(2, 6), 3, {name: nn.Flatten() for name in names}
    )
    assert not isinstance(model._program, str)
    check(model, lambda batch: [torch.randn(batch, 6)])


class Chain(nn.Module):
    """Convolutions with ReLUs in place, of which one ends at a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.relu(layer(x))
        return x


def test_in_place_operations_stay_where_nothing_else_reads() -> None:
    """As in the body: no memory of their own; functional where the operand is carried."""
    model = anynest.add_exits(Chain(), torch.randn(2, 6), 6, {"layers.1": "auto"}).eval()
    targets = [[str(node.target) for node in s.graph.nodes] for s in model.segments()]
    assert ["aten.relu_.default" in names for names in targets] == [True, True]
    assert ["aten.relu.default" in names for names in targets] == [False, True]
    check(model, lambda batch: [torch.randn(batch, 6)])


class Sizes(nn.Module):
    """Python numbers made of sizes: in a factor, in a shape and in positions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.position = nn.Embedding(50, 4)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        places = torch.arange(length)
        x = self.one(x) + self.position(places)
        x = self.two(x) / length**0.5 + self.position(places.flip(0))
        total = x.new_zeros(x.shape[0], length + 1, 4)
        return self.out(total[:, :-1].sum(1) + x.sum(1) / (2 * length))


def test_sizes_of_tensors() -> None:
    model = anynest.add_exits(Sizes(), torch.randn(2, 6, 4), 3, {"one": "mean", "two": "mean"})
    assert [len(s(*state)) for s, state in [(model.segments()[0], [torch.randn(2, 6, 4)])]] == [2]
    check(model, lambda batch: [torch.randn(batch, 6, 4)])
    check(model, lambda batch: [torch.randn(batch, 9, 4)])


class Views(nn.Module):
    """An in-place operation on one of several views, or on a copy of a view."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.copied = copied

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.copied:
            first = torch.relu_(x[:, :3].clone())
            return first + self.out(x)
        left, _ = x.chunk(2, dim=1)
        left.add_(1)
        return self.out(x)


@pytest.mark.parametrize("copied", [True, False])
def test_in_place_operations_on_views(copied: bool) -> None:
    model = anynest.add_exits(Views(copied), torch.randn(2, 6), 3, {"one": "auto"})
    assert not isinstance(model._program, str)
    check(model, lambda batch: [torch.randn(batch, 6)])


def test_the_cost_of_inputs_of_another_type() -> None:
    """A predictor gives float32; they are cast as the body is."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    example = torch.randn(2, 3, 8, 8)
    model = anynest.add_exits(body, example, 5, {"1": "auto"}).eval()
    wanted = model.cost()
    model.bfloat16()
    assert model.cost(torch.randn(1, 3, 8, 8)) == wanted
    assert model.cost(torch.randn(1, 3, 8, 8, dtype=torch.float64)) == wanted
