"""Training: one pass through the untouched body, and each loss reaches what its exit reads."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import anynest
from anynest.nets import Exit, ExitNetwork


class Body(nn.Module):
    """Three blocks; an in-place ReLU writes to what the second exit reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("offset", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.bn1(self.conv1(x)))
        x = self.relu(self.conv2(x))
        x = self.conv3(x).mean((2, 3)) * self.scale + self.offset
        return self.fc(x)


class ByHand(nn.Module):
    """The same with exits written by hand."""

    def __init__(self, body: Body, exits: nn.ModuleDict) -> None:
        super().__init__()
        self.body, self.exits = body, exits

    def forward(self, x: Tensor) -> list[Tensor]:
        body = self.body
        x = body.drop(body.bn1(body.conv1(x)))
        first = self.exits["1"](x)
        x = body.conv2(x)
        second = self.exits["2"](x.clone())
        x = body.relu(x)
        x = body.conv3(x).mean((2, 3)) * body.scale + body.offset
        return [first, second, body.fc(x)]


def make(example: Tensor | None = None) -> tuple[ExitNetwork, ByHand]:
    body = Body()
    example = torch.randn(2, 3, 6, 6) if example is None else example
    head = nn.Sequential(nn.Conv2d(6, 2, 1), nn.Flatten(), nn.Linear(72, 4))
    model = anynest.add_exits(body, example, 4, {"conv2": head, "drop": "auto"})
    return model, ByHand(copy.deepcopy(body), copy.deepcopy(model.exits))


def gradients(model: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
    """Each output's gradients by parameter name, without the names that it does not reach."""
    torch.manual_seed(1)  # the same dropout
    named = {name.removeprefix("body."): p for name, p in model.named_parameters()}
    rows = []
    for output in model(x):
        loss = output.square().sum()
        found = torch.autograd.grad(
            loss, list(named.values()), retain_graph=True, allow_unused=True
        )
        rows.append({n: g for n, g in zip(named, found, strict=True) if g is not None})
    return rows


def test_gradients_equal_those_of_a_model_written_by_hand() -> None:
    model, by_hand = make()
    assert model.exit_names == ("drop", "conv2")
    for _ in range(2):
        x = torch.randn(5, 3, 6, 6)
        found, wanted = gradients(model, x), gradients(by_hand, x)
        assert [set(row) for row in found] == [set(row) for row in wanted]
        for one, two in zip(found, wanted, strict=True):
            for name in one:
                assert torch.equal(one[name], two[name]), name
    early = {"conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"}
    assert set(found[0]) == early | {"exits.1.1.weight", "exits.1.1.bias"}
    statistics = model.state_dict()["bn1.running_mean"]
    assert torch.equal(statistics, by_hand.body.bn1.running_mean), "as many passes: one each"


def test_head_reads_the_activation_before_an_in_place_operation() -> None:
    """With an identity head, the exit's output would be rectified with the activation."""
    body = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3))
    x = torch.randn(8, 3)
    model = anynest.add_exits(body, x, 3, {"0": nn.Identity()}).eval()
    wanted = body[0](x)
    assert wanted.min() < 0
    for outputs in (model(x), [y for _, y in model.stages(x)]):
        assert torch.equal(outputs[0], wanted)
    # and the other way round: a head must not change what the body reads
    plain = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    expected = plain(x)
    writes = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3))
    model = anynest.add_exits(plain, x, 3, {"0": writes})
    assert torch.equal(model(x)[-1], expected)
    assert torch.equal(plain(x), expected)


def test_body_is_untouched() -> None:
    model, _ = make()
    body, plain = model.body, Body()
    assert list(body.state_dict()) == list(plain.state_dict())
    names = list(model.state_dict())
    assert [n for n in names if not n.startswith("exits.")] == list(body.state_dict())
    assert dict(model.named_parameters())["scale"] is body.scale
    assert set(model.state_dict()) == {
        *(n for n, _ in model.named_parameters()),
        *(n for n, _ in model.named_buffers()),
    }
    plain.offset.fill_(3.0)
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert all(name.startswith("exits.") for name in missing.missing_keys)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(model.eval()(x)[-1], plain.eval()(x))
    assert torch.equal(body(x), plain(x)), "alone, without heads"
    assert not body.training
    assert not body.drop.training
    model.train()
    assert body.training
    assert body.drop.training
    model.double()
    assert body.scale.dtype == body.offset.dtype == torch.float64
    assert model.offset is body.offset
    assert model.get_submodule("conv2") is body.conv2
    assert model.get_submodule("exits.1") is model.exits["1"]


def test_replaced_child_takes_effect() -> None:
    model, _ = make()
    model.fc = nn.Linear(6, 4)
    assert model.body.fc is model.fc
    x = torch.randn(2, 3, 6, 6)
    model.eval()
    with torch.no_grad():
        model.fc.bias.fill_(100.0)
        assert model(x)[-1].min() > 50
        assert list(model.stages(x))[-1][1].min() > 50


def test_frozen_body() -> None:
    body = Body().requires_grad_(False)
    model = anynest.add_exits(body, torch.randn(2, 3, 6, 6), 4, {"drop": "auto", "conv3": "auto"})
    before = copy.deepcopy(body.state_dict())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 4
    model.train()
    body.eval()
    optimizer = torch.optim.SGD(trained, lr=0.1)
    combiner = anynest.OSGD()
    outputs = model(torch.randn(4, 3, 6, 6))
    losses = [output.square().sum() for output in outputs if output.requires_grad]
    assert len(losses) == 2
    combiner.backward(losses, trained)
    heads = [p.clone() for p in trained]
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(trained, heads, strict=True))
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_osgd_as_for_a_model_written_by_hand() -> None:
    model, by_hand = make()
    x = torch.randn(4, 3, 6, 6)
    for network in (model, by_hand):
        network.eval()
        combiner = anynest.OSGD()
        combiner.backward([y.square().mean() for y in network(x)], network.parameters())
    theirs = {n.removeprefix("body."): p.grad for n, p in by_hand.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, theirs[name]), name


class Shared(nn.Module):
    """One block called three times; embedding and output layer share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.block = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.again = self.block
        self.out = nn.Linear(5, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in (self.block, self.again, self.block):
            x = block(x)
        return self.out(x.mean(1))


def test_shared_modules_and_tied_weights() -> None:
    tokens = torch.randint(0, 9, (3, 4))
    body = Shared()
    after = {"again": "auto", "block#0": "auto", "block#1": "mean"}
    model = anynest.add_exits(body, tokens, 9, after).eval()
    assert model.exit_names == ("block#0", "block#1", "again")
    x = body.embed(tokens)
    wanted = []
    for stage in ("1", "2", "3"):
        x = body.block(x)
        wanted.append(model.exits[stage](x))
    wanted.append(body.out(x.mean(1)))
    for outputs in (model(tokens), [y for _, y in model.stages(tokens)]):
        for one, two in zip(outputs, wanted, strict=True):
            assert torch.equal(one, two)
    assert model.state_dict().keys() - body.state_dict().keys() == {
        f"exits.{s}.{i}.{kind}" for s in (1, 2, 3) for i in (1, 2) for kind in ("weight", "bias")
    }
    with torch.no_grad():
        body.embed.weight.mul_(2)
    for one, two in zip(model(tokens), [y for _, y in model.stages(tokens)], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    """Exits of a cast body, and a cast network."""
    x = torch.randn(3, 3, 6, 6).to(dtype)
    cast = anynest.add_exits(Body().to(dtype), x, 4, {"drop": "auto"})
    later = anynest.add_exits(Body(), torch.randn(2, 3, 6, 6), 4, {"drop": "auto"}).to(dtype)
    for model in (cast, later):
        model.eval()
        wanted = model(x)
        assert all(output.dtype == dtype for output in wanted)
        for (_, output), other in zip(model.stages(x), wanted, strict=True):
            torch.testing.assert_close(output, other)


def test_autocast() -> None:
    model, by_hand = make()
    x = torch.randn(2, 3, 6, 6)
    model.eval(), by_hand.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        wanted = by_hand(x)
        assert wanted[0].dtype == torch.bfloat16
        for one, two in zip(model(x), wanted, strict=True):
            assert torch.equal(one, two)
        for (_, one), two in zip(model.stages(x), wanted, strict=True):
            assert torch.equal(one, two)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # no cast may enter the graph
        other, _ = make()
        other.eval()
        list(other.stages(x))
    for (_, one), two in zip(other.stages(x), other(x), strict=True):
        assert one.dtype == two.dtype == torch.float32
        assert torch.equal(one, two)


class Tuples(nn.Module):
    """A block that returns a tuple, and a body with two inputs that returns a dict."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            y = self.linear(x)
            return y, {"square": y.square()}

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        y, more = self.block(x)
        return {"logits": self.head(y * mask) * scale, "other": more["square"], "loss": None}


def test_several_inputs_and_structured_outputs() -> None:
    x, mask = torch.randn(3, 4), torch.ones(3, 1)
    body = Tuples()
    by_name = {"mask": mask, "x": x, "scale": 3.0}
    square = Exit("auto", lambda out: out[1]["square"])
    model = anynest.add_exits(body, by_name, 2, {"block": square}, output="logits").eval()
    assert model.input_names == ("mask", "x")
    assert model.in_channels is None
    y = body.block.linear(x)
    wanted = [model.exits["1"](y.square()), body.head(y * mask) * 3.0]
    ways = (
        *(model(mask, x), model(mask, x=x), model(x=x, mask=mask)),
        [out for _, out in model.stages(x=x, mask=mask)],
    )
    for outputs in ways:
        assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))
    plain = anynest.add_exits(Tuples(), (x, mask), 2, {"block": Exit(read=0)}, output="logits")
    assert plain.input_names == ("x", "mask")
    with pytest.raises(TypeError, match="inputs must be x, mask, found 1 by position and none"):
        plain(x)
    with pytest.raises(TypeError, match="found 1 by position and maks by name"):
        plain(x, maks=mask)
    with pytest.raises(TypeError, match="inputs must be"):
        plain(x, x=mask)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["body", "in place", "block"])
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad:UserWarning"
)
def test_compiled_bodies(how: str) -> None:
    """Values and gradients as without; each loss still reaches only what its exit reads."""
    torch._dynamo.reset()
    _, by_hand = make()
    body: Any = copy.deepcopy(by_hand.body)
    if how == "body":
        body = torch.compile(body, backend="aot_eager")
    elif how == "in place":
        body.compile(backend="aot_eager")
    else:
        body.conv2 = torch.compile(body.conv2, backend="aot_eager")
    compiled = anynest.add_exits(
        body,
        torch.randn(2, 3, 6, 6),
        4,
        {"conv2": copy.deepcopy(by_hand.exits["2"]), "drop": "auto"},
    )
    compiled.exits["1"].load_state_dict(by_hand.exits["1"].state_dict())
    x = torch.randn(5, 3, 6, 6)
    by_hand.eval(), compiled.eval()
    wanted, found = gradients(by_hand, x), gradients(compiled, x)
    for one, two in zip(found, wanted, strict=True):
        one = {name.replace("_orig_mod.", ""): value for name, value in one.items()}
        assert set(one) == set(two)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    for (_, output), other in zip(compiled.stages(x), by_hand(x), strict=True):
        torch.testing.assert_close(output, other)
    torch._dynamo.reset()


class Checkpointed(nn.Module):
    """Blocks that run again in the backward pass, one of them with an exit within."""

    def __init__(self, checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3))
        self.out = nn.Linear(5, 3)
        self.checkpoint = checkpoint

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpoint else block(x)
        return self.out(x)


def test_activation_checkpointing() -> None:
    x = torch.randn(4, 5)
    after = {"blocks.0": "auto", "blocks.1.0": "auto"}
    plain = anynest.add_exits(Checkpointed(False), x, 3, after)
    other = anynest.add_exits(Checkpointed(True), x, 3, after)
    other.load_state_dict(plain.state_dict())
    found, wanted = gradients(other, x), gradients(plain, x)
    assert [len(row) for row in wanted] == [4, 6, 8]
    for one, two in zip(found, wanted, strict=True):
        assert set(one) == set(two)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_dropout_in_place_after_an_exit() -> None:
    """It writes to the activation in training mode alone."""
    drop = nn.Dropout(0.9, inplace=True)
    body = nn.Sequential(nn.Linear(4, 4), nn.Identity(), drop, nn.Linear(4, 2))
    x = torch.randn(64, 4)
    state = torch.get_rng_state()
    model = anynest.add_exits(body, x, 2, {"1": nn.Identity()})
    assert torch.equal(state, torch.get_rng_state()), "no random number is drawn"
    assert drop.training
    first, last = model.train()(x)
    assert torch.equal(first, body[0](x))
    (first.sum() + last.sum()).backward()

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.tap, self.out = nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.tap(self.one(x))
            return self.out(x.mul_(2) if self.training else x)

    model = anynest.add_exits(Writes(), x, 2, {"tap": "auto"})
    assert len(model.eval()(x)) == 2
    with pytest.raises(RuntimeError, match="must not write in place to the activation of 'tap'"):
        model.train()(x)


def test_heads_are_in_the_mode_of_the_body() -> None:
    """Whole: their dropout and statistics, too."""
    for training in (True, False):
        head = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 5))
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
        body.train(training)
        model = anynest.add_exits(body, torch.randn(2, 3, 8, 8), 5, {"1": Exit(head)})
        assert {module.training for module in model.modules()} == {training}
