"""What is refused at construction: the rule, what was found and a remedy, in one line."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anynest
from anynest.nets import Exit


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.unused = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Windows(nn.Module):
    """Attention-like: four windows of each image become rows of their own, and merge again."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.inner = nn.Linear(4, 4)
        self.after = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.before(x)
        x = self.inner(x.reshape(batch * 4, 2, 4)).reshape(batch, 8, 4)
        return self.out(self.after(x).mean(1))


X = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": {"block.1": "auto"}}, "found 'block.1'; near matches: blocks.1, blocks.2, "),
        ({"after": {"zzz": "auto"}}, "order of calls: stem, blocks.0, blocks.1, blocks.2, out"),
        ({"after": {"": "auto"}}, "must be after modules of the body, found ''"),
        ({"after": {"unused": "auto"}}, "'unused' must run when the body is called in eval mode"),
        ({"after": {"blocks": "auto"}}, "'blocks' must run"),
        ({"after": {"stem#1": "auto"}}, "a call of 'stem' must be one of #0 to #0, found 'stem#1'"),
        ({"after": {"stem#x": "auto"}}, "found 'stem#x'"),
        (
            {"after": {"stem": "auto", "stem#0": "auto"}},
            "at different calls, found 'stem', 'stem#0'",
        ),
        ({"after": {}}, "after must name at least one module"),
        ({"after": {"stem": "pool"}}, "must be a module or one of auto, nchw, .* found 'pool'"),
        (
            {"after": {"stem": "cls"}},
            "the head 'cls' of 'stem' needs 3 dimensions, found \\[2, 6\\]",
        ),
        ({"num_classes": None}, "needs num_classes=, found None"),
        ({"num_classes": 4}, "body's output must have num_classes = 4 values, found \\[2, 3\\]"),
        ({"example": ()}, "example must hold tensors, found none"),
        ({"example": ("x",)}, "example must hold tensors, found str"),
        ({"example": (X, X[:1])}, "dimension 0 of each example tensor must be the batch"),
        ({"example": torch.tensor(1.0)}, "dimension 0 of each example tensor must be the batch"),
        ({"output": "logits"}, "the body's output \\(output=\\) has no 'logits', found a tensor"),
        ({"after": {"stem": Exit(read=1)}}, "the output of 'stem' has no 1, found a tensor"),
        ({"after": {"stem": Exit(read=lambda y: None)}}, "must be one tensor, found a NoneType"),
        ({"after": {"stem": nn.Flatten(0)}}, "output 1 must have the batch as dimension 0"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "body": Body(), "example": X, "num_classes": 3, "after": {"stem": "auto"}
    }  # fmt: skip
    body = arguments["body"]
    with pytest.raises(ValueError, match=message) as caught:
        anynest.add_exits(**(arguments | change))
    assert len(str(caught.value).splitlines()) == 1
    assert not any(module._forward_hooks for module in body.modules()), "no hook is left"
    assert body.training


def test_refused_name_of_the_heads() -> None:
    body = Body()
    body.exits = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"must have no attribute 'exits'.*found Linear; rename"):
        anynest.add_exits(body, X, 3, {"stem": "auto"})


def test_images_with_channels_last() -> None:
    body = nn.Sequential(nn.Linear(6, 6), nn.Flatten(), nn.Linear(384, 3))
    x = torch.randn(2, 8, 8, 6)
    with pytest.raises(ValueError, match=r"looks like .*found \[2, 8, 8, 6\]; say 'nhwc'"):
        anynest.add_exits(body, x, 3, {"0": "auto"})
    model = anynest.add_exits(body, x, 3, {"0": "nhwc"})
    assert model.exits["1"][1].in_features == 6


def test_class_token_or_mean() -> None:
    class Tokens(nn.Module):
        def __init__(self, token: bool) -> None:
            super().__init__()
            if token:
                self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.linear, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.out(self.linear(x)[:, 0])

    x = torch.randn(2, 5, 4)

    def kind(body: nn.Module, example: Any) -> str:
        return anynest.add_exits(body, example, 3, {"linear": "auto"}).exits["1"][0].kind

    assert kind(Tokens(False), x) == "mean"
    assert kind(Tokens(True), x) == "cls"
    assert kind(Tokens(False), {"x": x, "attention_mask": torch.ones(2, 5)}) == "cls"


def test_rows_that_cannot_be_told_apart() -> None:
    x = torch.randn(2, 8, 4)
    with pytest.raises(
        ValueError,
        match="'inner' must have the batch as dimension 0, found \\[8, 2, 4\\] for a batch of 2; "
        "the nearest places that have: 'before', 'after'",
    ):
        anynest.add_exits(Windows(), x, 3, {"inner": "mean"})
    merged = Exit(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), lambda y: y.reshape(-1, 8, 4))
    body = Windows()
    with pytest.raises(ValueError, match="nearest places that work: 'before', 'after'") as caught:
        anynest.add_exits(body, x, 3, {"before": "mean", "inner": merged})
    assert "after 'inner'" in str(caught.value)
    assert "4*s" in str(caught.value)
    assert not any(module._forward_hooks for module in body.modules())
    assert anynest.add_exits(body, x, 3, {"before": "mean", "after": "mean"}).num_stages == 3


def test_example_of_one_row() -> None:
    """The row is doubled: two tell the batch from other dimensions."""
    model = anynest.add_exits(Body(), torch.randn(1, 4), 3, {"stem": "auto"}).eval()
    x = torch.randn(5, 4)
    for (_, output), wanted in zip(model.stages(x), model(x), strict=True):
        assert torch.equal(output, wanted)


def test_module_that_runs_another_number_of_times() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = x[:, 0]
            for step in range(x.shape[1]):
                state = self.cell(state + x[:, step])
            return self.out(state)

    model = anynest.add_exits(Loop(), torch.randn(2, 3, 4), 3, {"cell": "auto"})
    with pytest.raises(
        RuntimeError, match=r"'cell' must run 3 times .* as in the example, found 2"
    ):
        model(torch.randn(2, 2, 4))
    with pytest.raises(RuntimeError, match="'cell' must run 3 times"):
        list(model.eval().stages(torch.randn(2, 4, 4)))
