"""Losses by name, and parameters left out: the same step as with lists, and what names refuse."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, Stats, WeightedSGD, gradient_stats, list_methods, make_combiner
from anynest.multitask.gradients.backward import graph_leaves

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]
NAMES = ("depth", "seg", "normals")


def grads_of(network: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in network.parameters()]


def assert_equal(a: list[Tensor | None], b: list[Tensor | None]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        assert x is None or y is None or torch.equal(x, y)


@pytest.mark.parametrize("method", list_methods())
def test_a_dict_without_parameters_is_a_list_with_them(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    one, other = three_exits(), three_exits()
    named = dict(zip(NAMES, digit_losses(other, 0), strict=True))
    make_combiner(method).backward(digit_losses(one, 0), one.parameters())
    make_combiner(method).backward(named)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-7)  # another order of sums
    again = three_exits()
    named = dict(zip(NAMES, digit_losses(again, 0), strict=True))
    make_combiner(method).backward(named, again.parameters())
    assert_equal(grads_of(one), grads_of(again))


def test_priority_by_name_is_priority_by_number_in_any_order_of_the_dict(
    three_exits: Make, digit_losses: Losses
) -> None:
    networks = [three_exits() for _ in range(3)]
    losses = [dict(zip(NAMES, digit_losses(net, 0), strict=True)) for net in networks]
    OSGD([2, 0, 1]).backward(losses[0])
    by_name = OSGD(["normals", "depth", "seg"])
    by_name.backward(losses[1], networks[1].parameters())
    turned = {name: losses[2][name] for name in reversed(NAMES)}
    stats = by_name.backward(turned, networks[2].parameters())
    assert stats.names == NAMES[::-1]
    want = grads_of(networks[0])
    plain = three_exits()
    OSGD().backward(digit_losses(plain, 0))
    first = want[0]
    assert first is not None
    assert not torch.allclose(first, grads_of(plain)[0], rtol=1e-3)  # the order matters
    for found in (grads_of(networks[1]), grads_of(networks[2])):
        for x, y in zip(want, found, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_skipped_losses_keep_the_order_of_names() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    w = nn.Parameter(torch.zeros(2))
    combiner = OSGD(["seg", "depth", "bad"], on_nonfinite="skip")
    stats = combiner.backward({"bad": w.sum() * torch.nan, "depth": w @ a, "seg": w @ b})
    assert w.grad is not None
    torch.testing.assert_close(w.grad, torch.tensor([1.5, 0.5]))  # seg, then a - (a.b)/(b.b) b
    assert stats["bad"].skipped
    assert stats["bad"].loss_weight.item() == 0
    assert "bad" in repr(stats)
    assert "skipped" in repr(stats).splitlines()[1]


def test_weights_by_name_go_to_their_losses() -> None:
    w = nn.Parameter(torch.zeros(2))
    losses = {"a": w[0], "b": w[1]}
    for reduction, want in (("sum", [1.0, 3.0]), ("mean", [0.25, 0.75])):
        w.grad = None
        combiner = WeightedSGD({"b": 3, "a": 1}, reduction)  # type: ignore[arg-type]
        combiner.backward(losses, retain_graph=True)
        assert w.grad is not None
        assert w.grad.tolist() == want
    w.grad = None
    stats = WeightedSGD({"b": 3, "a": 1}, "participants").backward(losses)
    assert stats["b"].loss_weight.item() == 0.75
    with pytest.raises(ValueError, match="weights of an average must be at least 0"):
        WeightedSGD({"a": -1, "b": 1})


def test_kept_weights_go_with_their_names() -> None:
    w = nn.Parameter(torch.zeros(2))
    combiner = OSGD(refresh=8)

    def losses() -> dict[str, Tensor]:
        return {"a": w[0] - w[1], "b": w[1]}

    assert combiner.backward(losses(), [w]).refreshed
    assert not combiner.backward(losses(), [w]).refreshed
    turned = dict(reversed(losses().items()))
    assert combiner.backward(turned, [w]).refreshed  # the kept weights are of the other order
    assert not combiner.backward(turned | {}, [w]).refreshed


def test_micro_batches_by_name(three_exits: Make, digit_losses: Losses) -> None:
    one, other = three_exits(), three_exits()
    for network, named in ((one, False), (other, True)):
        combiner = OSGD([1, 0, 2])
        for step in range(2):
            losses = digit_losses(network, step)
            if named:
                combiner.accumulate(dict(zip(NAMES, losses, strict=True)), network.parameters())
            else:
                combiner.accumulate(losses, network.parameters())
        stats = combiner.combine()
        assert stats.names == (NAMES if named else None)
    assert_equal(grads_of(one), grads_of(other))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (lambda w: {"b": w.sum(), "a": w.sum()}, "found 'b', 'a' after 'a', 'b'"),
        (lambda w: {"a": w.sum(), "c": w.sum()}, "found 'a', 'c' after 'a', 'b'"),
        (lambda w: [w.sum(), w.sum()], "found a list after 'a', 'b'"),
    ],
)
def test_micro_batches_must_agree_on_names(second: Callable[[Tensor], Any], said: str) -> None:
    w = nn.Parameter(torch.ones(2))
    combiner = OSGD()
    combiner.accumulate({"a": w[0], "b": w[1] - w[0]})
    with pytest.raises(ValueError, match=f"same names in the same order, {said}"):
        combiner.accumulate(second(w))
    assert combiner.combine().names == ("a", "b")  # what was accumulated is unharmed
    assert w.grad is not None
    assert w.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("combiner", [OSGD(["a", "b"]), WeightedSGD({"a": 1, "b": 2})])
def test_names_that_are_not_the_losses(combiner: Any) -> None:
    w = nn.Parameter(torch.ones(2))
    argument = "priority" if isinstance(combiner, OSGD) else "weights"
    said = f"{argument} names 'a', 'b', so losses must be a dict with these names, found "
    for losses, found in (
        ([w[0], w[1]], "a list"),
        ({"a": w[0], "c": w[1]}, "'a', 'c'"),
        ({"a": w[0]}, "'a'"),
        ({"a": w[0], "b": w[1], "c": w[1]}, "'a', 'b', 'c'"),
    ):
        with pytest.raises(ValueError, match=re.escape(said + found + ":")):
            combiner.backward(losses)
    assert w.grad is None
    with pytest.raises(ValueError, match="priority must name each loss once, found"):
        OSGD(["a", "a"])


def test_leaves_are_those_of_loss_backward_in_the_order_of_the_graph() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(3, 4), nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
    trunk.bias.requires_grad_(False)
    alone = nn.Parameter(torch.ones(()))
    features = trunk(torch.randn(5, 3)).tanh()
    losses = [heads[1](features).sum(), alone, heads[0](features).square().mean()]
    found = graph_leaves(losses)
    assert {id(p) for p in found} == {
        id(p) for p in (trunk.weight, *heads[0].parameters(), *heads[1].parameters(), alone)
    }
    assert len(found) == 6
    again = graph_leaves(losses)
    assert all(a is b for a, b in zip(found, again, strict=True))
    ids = [id(p) for p in found]
    assert max(ids.index(id(p)) for p in heads[1].parameters()) < ids.index(id(alone))
    assert ids.index(id(alone)) < min(ids.index(id(p)) for p in heads[0].parameters())
    OSGD().backward(losses)
    assert heads[2].weight.grad is None
    assert trunk.bias.grad is None
    assert alone.grad is not None
    assert alone.grad.item() == 1


def test_micro_batches_without_parameters_must_touch_the_same() -> None:
    v, w = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    combiner = OSGD()
    combiner.accumulate({"a": w[0]})
    with pytest.raises(ValueError, match="the same parameters, found 1 that are not the 1 before"):
        combiner.accumulate({"a": v[0]})
    combiner.accumulate({"a": w[0]})
    combiner.combine()
    assert w.grad is not None
    assert w.grad.tolist() == [2, 0]


def stats_of_two() -> Stats:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    return OSGD().backward({"depth": 3 * w[0], "seg": w[1] - w[0]})


def test_stats_answer_by_name_and_by_number() -> None:
    stats = stats_of_two()
    task = stats["depth"]
    assert task.name == "depth"
    assert task.loss.item() == 3
    assert task.loss_weight.item() == pytest.approx(1 + 1 / 3)
    assert task.norm is not None
    assert task.norm.item() == pytest.approx(3)
    assert set(task.cosines) == {"seg"}
    assert task.cosines["seg"].item() == pytest.approx(-(2**-0.5))
    assert stats[1].name == "seg"
    assert [task.name for task in stats] == ["depth", "seg"]  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="task must be one of 'depth', 'seg', found 'sge'"):
        stats["sge"]
    w = nn.Parameter(torch.ones(2))
    plain = WeightedSGD().backward([w[0], w[1]])
    assert (plain[1].name, plain[1].norm, plain[1].cosines) == ("1", None, {})
    with pytest.raises(KeyError, match="task must be one of numbers, found 'depth'"):
        plain["depth"]
    with pytest.raises(IndexError, match="task must be from 0 to 1, found 2"):
        plain[2]


def test_log_dict_is_flat_and_equal_to_the_stats() -> None:
    stats = stats_of_two()
    logged = stats.log_dict("train/")
    assert all(value.dim() == 0 for value in logged.values())
    assert logged["train/loss_weight/depth"].item() == stats["depth"].loss_weight.item()
    assert logged["train/cosine/depth/seg"].item() == stats["seg"].cosines["depth"].item()
    assert logged["train/norm/depth"].item() == pytest.approx(3)
    w = nn.Parameter(torch.ones(2))
    plain = WeightedSGD().backward([w[0], w[1]]).log_dict()
    assert list(plain) == ["loss/0", "loss/1", "loss_weight/0", "loss_weight/1"]


def test_only_reading_waits_for_a_device() -> None:
    """On the meta device any read of a number raises."""
    w = nn.Parameter(torch.ones(2, device="meta"))
    combiner = OSGD(["b", "a"], on_nonfinite="ignore")
    stats = combiner.backward({"a": w[0], "b": w.sum()})
    assert stats["a"].loss.is_meta
    assert stats.log_dict()["cosine/a/b"].is_meta
    assert "a, b" in repr(stats)


def test_stats_without_a_dict_print_numbers() -> None:
    w = nn.Parameter(torch.ones(2))
    lines = repr(gradient_stats([w[0], 2 * w[1]])).splitlines()
    assert lines[0].split() == ["task", "loss", "weight", "cosines"]
    assert lines[1].split() == ["0", "1", "1", "1.000", "0.000"]
    assert lines[2].split() == ["1", "2", "1", "0.000", "1.000"]
