"""Run by test_context.py in a process of its own: ``rank_cases.py WORLD FOLDER [CASE...]``.

Forks WORLD processes, which join over gloo and run the cases one after another. A case compares
what ranks make of their parts of a batch with what one process makes of the whole, in every rank.
Prints the cases' ends as JSON: null, or the error. A rank that fails ends, and so do the others.
"""

import copy
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from anynest.multitask import (
    OSGD,
    Combiner,
    NonFiniteLossError,
    NormSGD,
    Stats,
    WeightedSGD,
    from_torchjd,
    gradient_stats,
    list_methods,
    make_combiner,
)
from anynest.nets import create_model, sync_batch_norm

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
TWO_ARE_ENOUGH = (
    "what_cannot_be_sharded_is_refused",
    "sharded_parameters_keep_their_rows_sharded",
    "sharded_micro_batches_and_a_sharded_nested_network",
    "uneven_shards_of_large_parameters",
)
CASES: dict[str, Callable[[int, int], None]] = {}


def case(function: Callable[[int, int], None]) -> Callable[[int, int], None]:
    CASES[function.__name__] = function
    return function


class Exits(nn.Module):
    """A small network with three nested exits; ``mode`` may leave parts of it out."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 7, 3, padding=1)
        self.third = nn.Linear(7, 9)
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(7, 3), nn.Linear(9, 3)])
        self.unused = nn.Linear(2, 2)
        self.to(dtype)

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.first(x).relu()
        b = self.second(a).relu()
        c = self.third(b.mean((2, 3))).relu()
        return [
            self.heads[0](a.mean((2, 3))),
            self.heads[1](b.mean((2, 3))),
            self.heads[2](c),
        ]


def network(dtype: torch.dtype = torch.float64) -> Exits:
    torch.manual_seed(7)
    return Exits(dtype)


def batch(size: int, step: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(100 + step)
    images = torch.randn(size, 1, 6, 6, generator=made, dtype=torch.float64)
    return images.to(dtype), torch.randint(3, (size,), generator=made)


def part(size: int, rank: int, world: int) -> slice:
    """Uneven on purpose: rank 0 has the remainder."""
    each, rest = divmod(size, world)
    start = rank * each + (rest if rank else 0)
    return slice(start, start + each + (0 if rank else rest))


def losses_of(net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return [nn.functional.cross_entropy(out, y) for out in net(x)]


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1).double() for p in net.parameters() if p.grad is not None])


def relative(found: Tensor, true: Tensor) -> float:
    assert found.shape == true.shape, (found.shape, true.shape)
    return float((found - true).norm() / true.norm().clamp(min=1e-300))


def check(name: str, found: float, limit: float) -> None:
    assert found <= limit, f"{name}: {found:.3g} is above {limit:.3g}"


def same_everywhere(tensor: Tensor) -> None:
    """All ranks hold the same bits."""
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor)
    assert all(torch.equal(one, tensor) for one in found), "ranks differ"


def expect(kind: type[Exception], text: str, deed: Callable[[], Any]) -> None:
    with pytest.raises(kind) as caught:
        deed()
    found = str(caught.value)
    assert text in found, f"{found} lacks {text!r}"
    assert "\n" not in found


def compare_stats(ours: Stats, one: Stats, limit: float) -> None:
    for name in ("losses", "loss_weights", "gram", "coefficients"):
        a, b = getattr(ours, name), getattr(one, name)
        assert (a is None) == (b is None), name
        if a is not None:
            check(name, relative(torch.nan_to_num(a), torch.nan_to_num(b)), 10 * limit)
    assert ours.skipped == one.skipped
    assert ours.refreshed == one.refreshed


def train_beside(
    make: Callable[[Any], Combiner],
    rank: int,
    world: int,
    dtype: torch.dtype = torch.float64,
    sizes: tuple[int, ...] = (11, 13),
    said: bool = True,
) -> None:
    """Steps of ranks and of one process side by side, on batches of uneven parts."""
    ours, one = network(dtype), network(dtype)
    shared, alone = make(dist.group.WORLD), make(None)
    for step, size in enumerate(sizes):
        x, y = batch(size, step, dtype)
        mine = part(size, rank, world)
        samples = len(y[mine])
        ours.zero_grad()
        one.zero_grad()
        found = shared.backward(
            losses_of(ours, x[mine], y[mine]), ours.parameters(), samples=samples if said else None
        )
        true = alone.backward(losses_of(one, x, y), one.parameters())
        limit = TOLERANCE[dtype]
        check(f"step {step}", relative(flat(ours), flat(one)), limit)
        assert [p.grad is None for p in ours.parameters()] == [
            p.grad is None for p in one.parameters()
        ]
        same_everywhere(flat(ours))
        assert not any(p.grad._is_view() for p in ours.parameters() if p.grad is not None)
        compare_stats(found, true, limit)
        with torch.no_grad():  # both go on from the same weights
            for p, q in zip(ours.parameters(), one.parameters(), strict=True):
                if q.grad is not None:
                    q -= 0.1 * q.grad
                p.copy_(q)


@case
def the_metric_of_an_optimizer_is_that_of_one_process(rank: int, world: int) -> None:
    """Each rank reads its pieces of D."""
    ours, one = network(), network()
    steppers = [torch.optim.AdamW(net.parameters(), lr=0.01, eps=1e-12) for net in (ours, one)]
    shared = OSGD([2, 0, 1], metric=steppers[0], group=dist.group.WORLD)
    alone = OSGD([2, 0, 1], metric=steppers[1])
    for step in range(4):
        x, y = batch(11, step)
        mine = part(11, rank, world)
        for stepper in steppers:
            stepper.zero_grad()
        if step == 2:  # micro-batches are sent at the end
            shared.accumulate(
                losses_of(ours, x[mine], y[mine]), ours.parameters(), samples=len(y[mine])
            )
            found = shared.combine()
        else:
            found = shared.backward(
                losses_of(ours, x[mine], y[mine]), ours.parameters(), samples=len(y[mine])
            )
        true = alone.backward(losses_of(one, x, y), one.parameters())
        check(f"step {step}", relative(flat(ours), flat(one)), 1e-11)
        same_everywhere(flat(ours))
        compare_stats(found, true, 1e-11)
        plain = copy.deepcopy(one)
        plain.zero_grad()
        OSGD([2, 0, 1]).backward(losses_of(plain, x, y), plain.parameters())
        assert (relative(flat(plain), flat(one)) > 1e-4) == (step > 0)
        for stepper in steppers:
            stepper.step()
        with torch.no_grad():
            for p, q in zip(ours.parameters(), one.parameters(), strict=True):
                p.copy_(q)


def tensorwise(*arguments: Any, **options: Any) -> Combiner:
    """Imported late: the import registers methods, which other tests collect."""
    from anynest.experiments.catalog.projections import TensorOSGD

    return TensorOSGD(*arguments, **options)


def _methods(dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")

    def add(name: str, make: Callable[[Any], Combiner], **more: Any) -> None:
        def run(rank: int, world: int) -> None:
            train_beside(make, rank, world, dtype, **more)

        CASES[f"{name}-{kind}"] = run

    for method in list_methods():
        add(method, lambda group, m=method: make_combiner(m, group=group))
    if dtype is torch.float32:  # the same code: rounding alone differs
        return
    add("osgd-priority", lambda group: OSGD(priority=[2, 0, 1], group=group))
    add("normsgd-calibrated", lambda group: NormSGD("calibrated", group=group))
    add("osgd-norm-calibrated", lambda group: OSGD(normalize=True, C="calibrated", group=group))
    add("sgd-weights", lambda group: WeightedSGD([0.2, 0.0, 1.5], group=group))
    add(
        "sgd-participants-weights",
        lambda group: WeightedSGD([0.2, 1.0, 1.5], "participants", group=group),
    )
    add("refresh-2", lambda group: OSGD(refresh=2, group=group), sizes=(11, 8, 13))
    add("tensorwise", lambda group: tensorwise([1, 2, 0], group=group))
    add("unsaid-samples", lambda group: OSGD(group=group), sizes=(8, 12), said=False)


_methods(torch.float64)
_methods(torch.float32)


@case
def a_rank_without_samples_counts_nothing(rank: int, world: int) -> None:
    """Its losses are the NaN mean over an empty batch, or an empty list."""
    for method in ("osgd", "sgd-mean", "normsgd"):
        for empty_list in (False, True):
            ours, one = network(), network()
            shared, alone = make_combiner(method, group=dist.group.WORLD), make_combiner(method)
            x, y = batch(5)
            last = rank == world - 1
            mine = slice(5, 5) if last else part(5, rank, world - 1)
            losses = [] if last and empty_list else losses_of(ours, x[mine], y[mine])
            found = shared.backward(losses, ours.parameters(), samples=len(y[mine]))
            true = alone.backward(losses_of(one, x, y), one.parameters())
            check(method, relative(flat(ours), flat(one)), 1e-12)
            compare_stats(found, true, 1e-12)
            expect(
                ValueError,
                "samples must not be 0 on every rank",
                lambda c=shared, n=ours: c.backward([], n.parameters(), samples=0),
            )


@case
def what_a_rank_without_samples_brings_is_not_looked_at(rank: int, world: int) -> None:
    ours, one = network(), network()
    x, y = batch(5)
    last = rank == world - 1
    mine = slice(0, 5) if last else part(5, rank, world - 1)
    losses = losses_of(ours, x[mine], y[mine])
    if last:
        losses = [loss * float("inf") for loss in losses]
    samples = 0 if last else len(y[mine])
    OSGD(group=dist.group.WORLD).backward(losses, ours.parameters(), samples=samples)
    OSGD().backward(losses_of(one, x, y), one.parameters())
    check("gradient", relative(flat(ours), flat(one)), 1e-12)


@case
def a_loss_that_is_not_finite_somewhere_is_left_out_everywhere(rank: int, world: int) -> None:
    for method in ("osgd", "sgd-mean", "sgd-participants"):
        ours, one = network(), network()
        shared = make_combiner(method, on_nonfinite="skip", group=dist.group.WORLD)
        alone = make_combiner(method, on_nonfinite="skip")
        x, y = batch(12)
        mine = part(12, rank, world)
        losses = losses_of(ours, x[mine], y[mine])
        if rank == world - 1:
            losses[1] = losses[1] * float("inf")
        found = shared.backward(losses, ours.parameters(), samples=len(y[mine]))
        whole = losses_of(one, x, y)
        whole[1] = whole[1] * float("inf")
        true = alone.backward(whole, one.parameters())
        check(method, relative(flat(ours), flat(one)), 1e-12)
        assert found.skipped == true.skipped == (1,)
        compare = torch.stack([found.loss_weights, true.loss_weights])
        assert torch.allclose(compare[0], compare[1], rtol=1e-10)
    every = [p.sum() * float("nan") for p in list(ours.parameters())[:3]]
    before = flat(ours)
    found = shared.backward(every, ours.parameters(), samples=3)
    assert found.skipped == (0, 1, 2)
    assert found.losses.isnan().all()
    assert torch.equal(before, flat(ours))


@case
def a_loss_that_is_not_finite_somewhere_is_raised_everywhere(rank: int, world: int) -> None:
    net = network()
    shared = OSGD(group=dist.group.WORLD)
    x, y = batch(8)
    losses = losses_of(net, x, y)
    if rank == world - 1:
        losses[2] = losses[2] * float("nan")
    expect(
        NonFiniteLossError,
        f"loss 2 is not finite on rank {world - 1}",
        lambda: shared.backward(losses, net.parameters()),
    )
    assert all(p.grad is None for p in net.parameters())
    shared.backward(losses_of(net, x, y), net.parameters())  # and the next step works


@case
def ignored_losses_are_not_looked_at(rank: int, world: int) -> None:
    net = network()
    x, y = batch(8)
    losses = losses_of(net, x, y)
    if rank == 0:
        losses[2] = losses[2] * float("nan")
    stats = OSGD(on_nonfinite="ignore", group=dist.group.WORLD).backward(losses, net.parameters())
    assert stats.losses[:2].isfinite().all()
    assert stats.losses[2].isnan()
    assert flat(net).isnan().any()


@case
def ranks_may_touch_different_parameters(rank: int, world: int) -> None:
    """What any rank touches is touched; it may change from step to step in both directions."""

    def some(net: Exits, x: Tensor, y: Tensor, ranks: list[int], step: int) -> list[Tensor]:
        """Rank 0's samples alone reach the second layer for loss 0; in step 1 nobody's do."""
        a = net.first(x).relu()
        b = net.second(a).relu().mean((2, 3))
        logits = net.heads[0](a.mean((2, 3)))
        weight = torch.tensor([float(r == 0 and step in (0, 2)) for r in ranks], dtype=x.dtype)
        if weight.any():
            logits = logits + weight[:, None] * net.heads[1](b)
        more = net.heads[1](b)
        late = torch.tensor([float(r == 1 and step == 2) for r in ranks], dtype=x.dtype)
        if late.any():
            more = more + late[:, None] * net.heads[2](net.third(b))
        return [nn.functional.cross_entropy(out, y) for out in (logits, more)]

    for method in list_methods():
        ours, one = network(), network()
        shared, alone = make_combiner(method, group=dist.group.WORLD), make_combiner(method)
        for step in range(4):
            x, y = batch(8, step)
            mine = part(8, rank, world)
            owner = [r for r in range(world) for _ in range(*part(8, r, world).indices(8))]
            ours.zero_grad()
            one.zero_grad()
            losses = some(ours, x[mine], y[mine], owner[mine], step)
            found = shared.backward(losses, ours.parameters(), samples=len(y[mine]))
            true = alone.backward(some(one, x, y, owner, step), one.parameters())
            for (name, p), q in zip(ours.named_parameters(), one.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None), f"{method}, step {step}: {name}"
            check(f"{method}, step {step}", relative(flat(ours), flat(one)), 1e-12)
            compare_stats(found, true, 1e-12)


@case
def what_cannot_be_settled_is_refused_on_every_rank(rank: int, world: int) -> None:
    net = network()
    x, y = batch(8)
    group = dist.group.WORLD

    def step(losses: list[Tensor], parameters: list[Tensor] | None = None, **more: Any) -> None:
        given = list(net.parameters()) if parameters is None else parameters
        OSGD(group=group).backward(losses, given, **more)

    losses = losses_of(net, x, y)
    expect(
        ValueError,
        "all ranks must have the same losses, found 2 on rank 0 and 3 on rank 1",
        lambda: step(losses[:2] if rank == 0 else losses),
    )
    some = list(net.parameters())[: 2 if rank == 1 else None]
    expect(ValueError, "all ranks must pass the same parameters", lambda: step(losses, some))
    expect(
        ValueError,
        "must pass samples= or none, found none on rank 1",
        lambda: step(losses, samples=None if rank == 1 else 3),
    )
    bad = [losses[0], losses[1].detach(), losses[2]] if rank == 1 else losses
    text = "loss 1 needs no gradient" if rank == 1 else "rank 1 cannot take this step"
    expect(ValueError, text, lambda: step(bad))
    image = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for unlike in (
        image.to(memory_format=torch.channels_last),
        image.float(),
        image.view(2, 3, 2, 8),
    ):
        kernel = nn.Parameter(unlike if rank == 1 else image)
        together = [loss + kernel.sum() for loss in losses]
        expect(
            ValueError,
            "all ranks must pass the same parameters",
            lambda: step(together, [*net.parameters(), kernel]),  # noqa: B023 (called at once)
        )
    other = nn.Linear(2, 2).double()
    foreign = list(other.parameters())
    expect(ValueError, "no loss touches any of the 2 parameters", lambda: step(losses, foreign))
    assert all(p.grad is None for p in net.parameters())
    step(losses)


@case
def micro_batches_are_projected_once(rank: int, world: int) -> None:
    for method in ("osgd", "sgd-mean", "sgd-participants", "normsgd", "osgd-norm"):
        ours, one = network(), network()
        shared, alone = make_combiner(method, group=dist.group.WORLD), make_combiner(method)
        for _ in range(2):
            for step, size in enumerate((9, 12, 7)):
                x, y = batch(size, step)
                mine = part(size, rank, world)
                losses = [loss / 3 for loss in losses_of(ours, x[mine], y[mine])]
                shared.accumulate(losses, ours.parameters(), samples=len(y[mine]))
                whole = [loss / 3 for loss in losses_of(one, x, y)]
                alone.accumulate(whole, one.parameters())
            found, true = shared.combine(), alone.combine()
            check(method, relative(flat(ours), flat(one)), 1e-12)
            compare_stats(found, true, 1e-12)
            sent = 4 if method == "sgd-mean" else 2
            assert found.sent_bytes > sent * 8 * 100


@case
def several_dtypes_and_memory_formats(rank: int, world: int) -> None:
    def build() -> nn.Module:
        torch.manual_seed(3)
        net = nn.Module()
        net.a = nn.Parameter(torch.randn(6, 5, 3, 3).contiguous(memory_format=torch.channels_last))
        net.b = nn.Parameter(torch.randn(7, 6, dtype=torch.float64).t())
        net.c = nn.Parameter(torch.randn(11, dtype=torch.bfloat16))
        net.d = nn.Parameter(torch.randn(3, dtype=torch.float16))
        net.e = nn.Parameter(torch.randn(()))
        return net

    def losses(net: nn.Module, x: Tensor) -> list[Tensor]:
        a = net.a.sum((2, 3)).double() @ x.T
        both = a.square().mean() + net.c.double().square().sum() + net.e.double().square()
        return [
            both,
            (net.b.sum(1) * a.mean(1)).sum() + net.d.double().cos().sum(),
            (net.b.sum(0)[0] * x.mean() - net.e.double()).square() + net.c.double().sum() * x.sum(),
        ]

    made = torch.Generator().manual_seed(5)
    x = torch.randn(4 * world, 5, generator=made, dtype=torch.float64)
    mine = slice(4 * rank, 4 * rank + 4)
    for method in ("osgd", "sgd-sum", "sgd-participants"):
        ours, one = build(), build()
        make_combiner(method, group=dist.group.WORLD).backward(
            losses(ours, x[mine]), ours.parameters()
        )
        make_combiner(method).backward(
            [
                sum(losses(one, x[4 * r : 4 * r + 4])[i] for r in range(world)) / world
                for i in range(3)
            ],
            one.parameters(),
        )
        for (name, p), q in zip(ours.named_parameters(), one.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert p.grad.dtype == p.dtype
            assert p.grad.stride() == p.stride(), name
            # a weight of OSGD's carries the roundings of all dtypes to every entry
            limit = 20 * world * max(torch.finfo(p.dtype).eps, 1e-8 * (method == "osgd"))
            check(f"{method} {name}", relative(p.grad.double(), q.grad.double()), limit)


@case
def nearly_parallel_gradients_take_their_second_look_together(rank: int, world: int) -> None:
    torch.manual_seed(1)
    base, other = torch.randn(2, 40 * world, dtype=torch.float64)
    rows = torch.stack([base, base + 1e-7 * other, base - 1e-7 * other])
    ours = nn.Parameter(torch.zeros(40 * world, dtype=torch.float64))
    one = nn.Parameter(torch.zeros(40 * world, dtype=torch.float64))
    noise = torch.randn(world, 3, 40 * world, dtype=torch.float64)
    noise -= noise.mean(0)
    OSGD(group=dist.group.WORLD).backward([ours @ row for row in rows + noise[rank]], [ours])
    OSGD().backward([one @ row for row in rows], [one])
    assert ours.grad is not None
    assert one.grad is not None
    # what is left beside the first gradient is 1e-7 of it
    check("remainders", relative(ours.grad - base, one.grad - base), 1e-6)
    same_everywhere(ours.grad)


class Normed(nn.Module):
    """Two exits behind batch norms of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.ReLU())
        self.more = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, affine=False))
        self.heads = nn.ModuleList([nn.Linear(6, 3), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.body(x * 3 + 5).mean((2, 3))
        return [self.heads[0](a), self.heads[1](self.more(a).relu())]


def normed(name: str, dtype: torch.dtype, rank: int, world: int, **options: str) -> None:
    """Three whole steps with synchronised norms: gradients, running statistics, evaluation."""
    torch.manual_seed(11)
    made: nn.Module = (
        Normed()
        if name == "plain"
        else create_model(name, num_classes=3, in_channels=1, base_width=4, **options)
    )
    one = made.to(dtype)
    ours = copy.deepcopy(sync_batch_norm(copy.deepcopy(one), dist.group.WORLD))
    assert list(ours.state_dict()) == list(one.state_dict())
    shared, alone = OSGD(group=dist.group.WORLD), OSGD()
    # float32: what both paths round differently grows on the way through a deep network
    limit = {torch.float64: 1e-11, torch.float32: 2e-4}[dtype]
    for step, size in enumerate((11, 9, 5)):
        x, y = batch(size, step, dtype)
        x = torch.nn.functional.interpolate(x, size=(9, 9)) if name != "plain" else x
        last = rank == world - 1 and step == 2  # a rank without samples takes part all the same
        mine = part(size, rank, world if step < 2 else world - 1)
        mine = slice(size, size) if last else mine
        ours.zero_grad()
        one.zero_grad()
        losses = losses_of(ours, x[mine], y[mine])
        shared.backward(losses, ours.parameters(), samples=len(y[mine]))
        alone.backward(losses_of(one, x, y), one.parameters())
        check(f"step {step}", relative(flat(ours), flat(one)), limit)
        state, true = ours.state_dict(), one.state_dict()
        for key in true:
            check(f"step {step}, {key}", relative(state[key].double(), true[key].double()), limit)
        with torch.no_grad():
            for p, q in zip(ours.parameters(), one.parameters(), strict=True):
                q -= 0.05 * q.grad
                p.copy_(q)
    ours.eval()
    one.eval()
    with torch.no_grad():
        for a, b in zip(ours(x), one(x), strict=True):
            check("evaluation", relative(a, b), limit)


for _name in ("plain", "width_nested_resnet10", "alternating_nested_sparse_resnet14"):
    CASES[f"sync-norm-{_name}"] = partial(normed, _name, torch.float64)
CASES["sync-norm-shared"] = partial(
    normed, "alternating_nested_sparse_resnet14", torch.float64, head="shared", norm="shared"
)
CASES["sync-norm-float32"] = partial(normed, "width_nested_resnet10", torch.float32)


@case
def the_look_at_gradients_is_at_the_joined_batch(rank: int, world: int) -> None:
    ours, one = network(), network()
    x, y = batch(11)
    mine = part(11, rank, world)
    found = gradient_stats(
        losses_of(ours, x[mine], y[mine]),
        ours.parameters(),
        group=dist.group.WORLD,
        samples=len(y[mine]),
    )
    compare_stats(found, gradient_stats(losses_of(one, x, y), one.parameters()), 1e-12)
    assert all(p.grad is None for p in ours.parameters())


@case
def gradients_add_up_as_after_backward(rank: int, world: int) -> None:
    ours, one = network(), network()
    shared, alone = OSGD(group=dist.group.WORLD), OSGD()
    for step in range(2):
        x, y = batch(8, step)
        mine = part(8, rank, world)
        shared.backward(losses_of(ours, x[mine], y[mine]), ours.parameters(), samples=len(y[mine]))
        alone.backward(losses_of(one, x, y), one.parameters())
    check("sum", relative(flat(ours), flat(one)), 1e-12)


@case
def one_way_out_and_one_way_back(rank: int, world: int) -> None:
    """(S + 1) P (W-1)/W, plus a little; and a task is on its way while the next is computed."""
    net = nn.Module()
    torch.manual_seed(2)
    net.w = nn.Parameter(torch.randn(300, 400, dtype=torch.float64))
    x = torch.randn(400, dtype=torch.float64)
    shared = OSGD(group=dist.group.WORLD)
    events: list[str] = []
    collectives = shared.context.collectives
    reduce_scatter, all_gather = collectives.reduce_scatter, collectives.all_gather

    def watched(rows: Tensor) -> Callable[[], Tensor]:
        events.append("send")
        wait = reduce_scatter(rows)

        def waited() -> Tensor:
            events.append("wait")
            return wait()

        return waited

    def gathered(piece: Tensor) -> Tensor:
        events.append("gather")
        return all_gather(piece)

    collectives.reduce_scatter, collectives.all_gather = watched, gathered
    total = 300 * 400 * 8 * (world - 1) // world
    for step in range(2):
        events.clear()
        hidden = net.w @ x
        losses = [hidden.square().sum(), hidden.sin().sum(), hidden.sum()]
        for number, loss in enumerate(losses):
            loss.register_hook(lambda _, n=number: events.append(f"pass {n}"))
        stats = shared.backward(losses, net.parameters())
        assert events == (
            ["pass 0", "send", "pass 1", "wait", "send", "pass 2", "wait", "send", "wait", "gather"]
        ), events
        assert 4 * total <= stats.sent_bytes < 4.02 * total, (step, stats.sent_bytes / total)
    single = WeightedSGD(group=dist.group.WORLD)
    for _ in range(2):
        hidden = net.w @ x
        stats = single.backward([hidden.square().sum(), hidden.sum()], net.parameters())
        assert 2 * total <= stats.sent_bytes < 2.02 * total


@case
def what_no_task_shares_is_not_sent(rank: int, world: int) -> None:
    """A task sends what it touches: own parts of the network count for their own task alone."""
    net = nn.ParameterList([nn.Parameter(torch.ones(n).double()) for n in (8000, 16000, 32000)])
    shared = OSGD(group=dist.group.WORLD)
    for _ in range(2):
        sums = [p.square().sum() for p in net]
        stats = shared.backward([sums[0], sums[0] + sums[1], sum(sums)], net.parameters())
    sent = (8000 + 24000 + 56000 + 56000) * 8 * (world - 1) // world
    assert sent <= stats.sent_bytes < 1.02 * sent
    shared = OSGD(group=dist.group.WORLD, refresh=2)
    for step in range(4):
        sums = [p.square().sum() for p in net]
        stats = shared.backward([sums[0], sums[0] + sums[1], sum(sums)], net.parameters())
        expected = sent if step % 2 == 0 else 2 * 56000 * 8 * (world - 1) // world
        assert expected <= stats.sent_bytes < 1.02 * expected


def sharded(network: nn.Module, world: int, parts: int | None = None, **more: Any) -> nn.Module:
    """By ``fully_shard``; ``parts``: in so many shards, of which each lies on several ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shape = (world,) if parts is None else (world // parts, parts)
    names = ("shard",) if parts is None else ("copy", "shard")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for inner in network.children():
        if not isinstance(inner, nn.ModuleList):
            fully_shard(inner, mesh=mesh, **more)
    fully_shard(network, mesh=mesh, **more)
    return network


def gathered(shards: list[nn.Parameter]) -> Tensor:
    """The gradient of sharded parameters, whole."""
    grads = [p.grad for p in shards]
    return torch.cat([g.full_tensor().reshape(-1).double() for g in grads if g is not None])


def beside_sharded(
    rank: int,
    world: int,
    make: Callable[[Any], Combiner] | None,
    parts: int | None = None,
    **more: Any,
) -> None:
    """Three steps, the gradient added to what is in ``.grad``, the weights moved by an optimizer.

    ``make`` None: OSGD in the metric of that optimizer, which is RMSprop.
    """
    one, ours = network(), sharded(network(), world, parts, **more)
    shards = list(ours.parameters())
    steppers: list[torch.optim.Optimizer]
    if make is None:
        steppers = [torch.optim.RMSprop(net.parameters(), lr=0.01) for net in (ours, one)]
        shared: Combiner = OSGD(metric=steppers[0], group=dist.group.WORLD)
        alone: Combiner = OSGD(metric=steppers[1])
    else:
        shared, alone = make(dist.group.WORLD), make(None)
        steppers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (ours, one)]
    for step in range(3):
        x, y = batch(11, step)
        mine = part(11, rank, world)
        if step != 1:
            for stepper in steppers:
                stepper.zero_grad()
        losses = losses_of(ours, x[mine], y[mine])
        found = shared.backward(losses, shards, samples=len(y[mine]))
        true = alone.backward(losses_of(one, x, y), one.parameters())
        check(f"step {step}", relative(gathered(shards), flat(one)), 1e-12)
        compare_stats(found, true, 1e-12)
        for stepper in steppers:
            stepper.step()
    assert found.sent_bytes < 5000  # words and dots alone: the shards stay where they are


@case
def sharded_parameters_keep_their_rows_sharded(rank: int, world: int) -> None:
    beside_sharded(rank, world, lambda group: OSGD(group=group))
    for method in ("sgd-mean", "osgd-norm", "sgd-participants"):
        more = {"reshard_after_forward": False} if method == "sgd-mean" else {}
        beside_sharded(rank, world, lambda group, m=method: make_combiner(m, group=group), **more)
    beside_sharded(rank, world, lambda group: tensorwise(group=group))
    beside_sharded(rank, world, lambda group: OSGD(refresh=2, group=group))
    beside_sharded(rank, world, None)


@case
def uneven_shards_of_large_parameters(rank: int, world: int) -> None:
    """Rank 0 has two rows of 8192 entries, and rank 1 one."""

    def made() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 8192), nn.Linear(8192, 3)).double()

    one, ours = made(), sharded(made(), world)
    shards = list(ours.parameters())
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for network, parameters, combiner in (
        (ours, shards, OSGD(group=dist.group.WORLD)),
        (one, list(one.parameters()), OSGD()),
    ):
        out = network(x)
        combiner.backward([out[:, 0].sum(), out[:, 1].square().sum()], parameters)
    check("update", relative(gathered(shards), flat(one)), 1e-12)


@case
def shards_that_lie_on_several_ranks_count_once(rank: int, world: int) -> None:
    beside_sharded(rank, world, lambda group: OSGD(normalize=True, group=group), parts=world // 2)
    beside_sharded(rank, world, None, parts=world // 2)


@case
def sharded_micro_batches_and_a_sharded_nested_network(rank: int, world: int) -> None:
    one, ours = network(), sharded(network(), world)
    shards = list(ours.parameters())
    shared, alone = OSGD(group=dist.group.WORLD), OSGD()
    for step, size in enumerate((9, 12)):
        x, y = batch(size, step)
        mine = part(size, rank, world)
        losses = [loss / 2 for loss in losses_of(ours, x[mine], y[mine])]
        shared.accumulate(losses, shards, samples=len(y[mine]))
        alone.accumulate([loss / 2 for loss in losses_of(one, x, y)], one.parameters())
    shared.combine()
    alone.combine()
    check("micro-batches", relative(gathered(shards), flat(one)), 1e-12)

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(5)
    whole = create_model("width_nested_resnet10", num_classes=3, in_channels=1, base_width=2)
    whole = whole.double()
    spread = sync_batch_norm(copy.deepcopy(whole), dist.group.WORLD)
    fully_shard(spread, mesh=init_device_mesh("cpu", (world,)))
    shards = list(spread.parameters())
    mine = part(12, rank, world)
    OSGD(group=dist.group.WORLD).backward(
        losses_of(spread, x[mine], y[mine]), shards, samples=len(y[mine])
    )
    OSGD().backward(losses_of(whole, x, y), whole.parameters())
    check("nested", relative(gathered(shards), flat(whole)), 1e-11)


@case
def what_cannot_be_sharded_is_refused(rank: int, world: int) -> None:
    net = sharded(network(), world)
    shards = list(net.parameters())
    x, y = batch(8)
    losses = losses_of(net, x, y)
    group = dist.group.WORLD
    expect(ValueError, "give it group=", lambda: OSGD().backward(losses, shards))
    extra = nn.Parameter(torch.ones(3).double())
    expect(
        ValueError,
        "must all be sharded or none, found 1 of ",
        lambda: OSGD(group=group).backward(losses, [*shards, extra]),
    )
    OSGD(group=group).backward(losses, shards)


@case
def losses_by_name_without_parameters(rank: int, world: int) -> None:
    names = ("c", "a", "b")
    one, ours = network(), network()
    shared = OSGD(["a", "b", "c"], group=dist.group.WORLD)
    shown = f"group=<{world} ranks>)"
    assert repr(shared).endswith(shown), repr(shared)
    for step, size in enumerate((8, 12)):
        x, y = batch(size, step)
        mine = part(size, rank, world)
        named = dict(zip(names, losses_of(ours, x[mine], y[mine]), strict=True))
        stats = shared.backward(named, samples=len(y[mine]))
        OSGD([1, 2, 0]).backward(losses_of(one, x, y), one.parameters())
        assert stats.names == names
    check("by name", relative(flat(ours), flat(one)), 1e-12)


@case
def names_and_inferred_parameters_must_be_equal(rank: int, world: int) -> None:
    group = dist.group.WORLD
    w = nn.Parameter(torch.ones(2).double())
    turned = {"a": w[0], "b": w[1]} if rank else {"b": w[0], "a": w[1]}
    expect(
        ValueError, "the same names in the same order", lambda: OSGD(group=group).backward(turned)
    )
    some = {"a": w[0], "b": w[1]} if rank else [w[0], w[1]]
    expect(ValueError, "the same names in the same order", lambda: OSGD(group=group).backward(some))
    more = nn.Parameter(torch.ones(3).double())
    losses = [w[0], more.sum()] if rank else [w[0], w.sum()]
    expect(ValueError, "the same parameters", lambda: OSGD(group=group).backward(losses))
    bad = {"a": w[0], "b": w[1] * (torch.nan if rank else 1)}
    expect(
        NonFiniteLossError,
        "loss b is not finite on rank 1",
        lambda: OSGD(group=group).backward(bad),
    )
    # a rank without samples passes zeros by name, and its parameters
    empty = rank == 0
    zeros = {"a": torch.zeros(()).double(), "b": torch.zeros(()).double()}
    full = {"a": w[0], "b": w[1] - w[0]}
    combiner = OSGD(["b", "a"], group=group)
    combiner.backward(zeros if empty else full, [w], samples=0 if empty else 3)
    check("zeros", relative(w.grad, torch.tensor([-0.5, 1.5]).double()), 1e-12)
    w.grad = None
    kept = OSGD(refresh=8, group=group)
    for step in range(3):
        pair = {"a": w[0], "b": w[1] - w[0]}
        stats = kept.backward(pair if step < 2 else dict(reversed(pair.items())))
        assert stats.refreshed == (step != 1), step


@case
def torchjd_weights_are_those_of_one_process(rank: int, world: int) -> None:
    from torchjd.aggregation import MGDA, PCGrad

    for method in (MGDA, PCGrad):
        one, ours = network(), network()
        x, y = batch(8)
        mine = part(8, rank, world)
        torch.manual_seed(3 + rank)  # PCGrad draws: the first rank's weights count
        shared = from_torchjd(method(), group=dist.group.WORLD)
        shared.backward(losses_of(ours, x[mine], y[mine]), samples=len(y[mine]))
        torch.manual_seed(3)
        from_torchjd(method()).backward(losses_of(one, x, y))
        check(method.__name__, relative(flat(ours), flat(one)), 1e-10)


@case
def sharded_parameters_must_be_passed(rank: int, world: int) -> None:
    net = sharded(network(), world)
    shards = list(net.parameters())
    x, y = batch(8)
    losses = losses_of(net, x, y)
    expect(
        ValueError,
        "parameters must be passed under fully_shard",
        lambda: OSGD(group=dist.group.WORLD).backward(losses),
    )
    OSGD(group=dist.group.WORLD).backward(losses, shards)


def run_rank(rank: int, world: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    for name in names:
        error = None
        try:
            CASES[name](rank, world)
        except BaseException:
            error = traceback.format_exc()
        (folder / f"{name}.{rank}").write_text(json.dumps(error))
        if error:
            os._exit(1)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def cases(world: int) -> list[str]:
    """The names of the cases for so many ranks; float32 and the slowest on two alone."""
    few = {*TWO_ARE_ENOUGH, *(name for name in CASES if name.endswith("-float32"))}
    return [name for name in CASES if world == 2 or name not in few]


def main() -> None:
    world, folder = int(sys.argv[1]), Path(sys.argv[2])
    names = sys.argv[3:] or cases(world)
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(540, exit=True)
            run_rank(rank, world, folder, names)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    ends: dict[str, Any] = {}
    for name in names:
        found = [folder / f"{name}.{rank}" for rank in range(world)]
        errors = [json.loads(path.read_text()) if path.exists() else "not run" for path in found]
        ends[name] = [error for error in errors if error]
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
