"""OSGD in the metric of an optimizer: the promise holds for the step that the optimizer takes."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from anynest.multitask import OSGD, make_combiner
from anynest.multitask.distributed.partition import Partition
from anynest.multitask.methods.metric import OptimizerMetric
from anynest.multitask.methods.reference import osgd, padded

Make = Callable[[Iterable[Any]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "adam": lambda p: Adam(p, lr=1e-2, betas=(0.8, 0.99)),
    "adam-single": lambda p: Adam(p, lr=1e-2, foreach=False),
    "amsgrad": lambda p: Adam(p, lr=1e-2, amsgrad=True, betas=(0.9, 0.5)),
    "adamw": lambda p: AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-foreach": lambda p: AdamW(p, lr=1e-2, foreach=True),
    "adamw-fused": lambda p: AdamW(p, lr=1e-2, fused=True),
    "adamw-tensor-rate": lambda p: AdamW(p, lr=torch.tensor(1e-2)),
    "nadam": lambda p: NAdam(p, lr=1e-2),
    "rmsprop": lambda p: RMSprop(p, lr=1e-3),
    "rmsprop-centered": lambda p: RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
    "adagrad": lambda p: Adagrad(p, lr=1e-2, lr_decay=0.1),
    "sgd": lambda p: SGD(p, lr=1e-2, momentum=0.9),
}
EACH = pytest.mark.parametrize("name", OPTIMIZERS)


class Trunk(nn.Module):
    """Large, small and unused tensors, one in channels_last, and heads of one task each."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 640, 3, padding=1)  # large enough to stay where it is
        self.wide = nn.Linear(640, 130)  # more than one chunk
        self.middle = nn.Linear(130, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))
        self.unused = nn.Linear(2, 2)
        self.to(dtype)
        with torch.no_grad():
            self.conv.weight.data = self.conv.weight.contiguous(memory_format=torch.channels_last)

    def losses(self, seed: int, scale: float = 1.0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        dtype = self.conv.weight.dtype
        x = torch.randn(16, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
        targets = torch.randn(3, 16, 2, generator=generator, dtype=torch.float64).to(dtype)
        hidden = self.conv(x).tanh().mean((2, 3))
        hidden = self.middle(self.wide(hidden).tanh()).tanh()
        pairs = zip(self.heads, targets, (1.0, 30.0, 0.1), strict=True)
        return [scale * k * (head(hidden) - y).square().mean() for head, y, k in pairs]


def trunk(dtype: torch.dtype = torch.float64) -> Trunk:
    torch.manual_seed(3)
    return Trunk(dtype)


def groups_of(net: Trunk) -> list[dict[str, Any]]:
    """Two groups that differ in learning rate and eps."""
    heads = list(net.heads.parameters())
    ids = {id(p) for p in heads}
    rest = [p for p in net.parameters() if id(p) not in ids]
    return [{"params": rest}, {"params": heads, "lr": 3e-3}]


def trained(name: str, dtype: torch.dtype = torch.float64, steps: int = 3) -> Any:
    """A network and its optimizer after some steps, in two groups."""
    net = trunk(dtype)
    optimizer = OPTIMIZERS[name](groups_of(net))
    for step in range(steps):
        optimizer.zero_grad()
        sum(net.losses(100 + step)).backward()  # type: ignore[union-attr]
        optimizer.step()
    optimizer.zero_grad()
    return net, optimizer


def diagonal_of(optimizer: Optimizer, net: nn.Module) -> Tensor:
    """[P] D by the formulas of torch's documentation, 0 for what has no state."""
    out = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            lr, eps = float(group["lr"]), group.get("eps")
            if isinstance(optimizer, SGD):
                d = torch.full_like(p, lr, dtype=torch.float64)
            elif "square_avg" in state:
                mean = state.get("grad_avg", torch.zeros_like(p)).double()
                d = lr / ((state["square_avg"].double() - mean**2).sqrt() + eps)
            elif "exp_avg_sq" in state:
                second = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"].double()
                correction = 1 - group["betas"][1] ** float(state["step"])
                d = lr / ((second / correction).sqrt() + eps)
            elif "sum" in state:
                d = lr / (state["sum"].double().sqrt() + eps)
            else:
                d = torch.zeros_like(p, dtype=torch.float64)
            out.append((p, d))
    by_id = {id(p): d for p, d in out}
    return torch.cat([by_id[id(p)].detach().reshape(-1) for p in net.parameters()])


def gradients_of(losses: list[Tensor], net: nn.Module) -> list[Tensor]:
    """[P] in float64 for each loss."""
    parameters = list(net.parameters())
    return [
        padded(
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), parameters
        )
        for loss in losses
    ]


def update_of(net: nn.Module) -> Tensor:
    """[P] ``.grad`` in float64."""
    return padded([p.grad for p in net.parameters()], list(net.parameters()))


def length(vector: Tensor, diagonal: Tensor) -> Tensor:
    """The norm in the metric."""
    return (vector @ (diagonal * vector)).sqrt()


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("priority", [[0, 1, 2], [2, 0, 1]], ids=["forward", "mixed"])
def test_the_promise_holds_in_the_metric(name: str, dtype: torch.dtype, priority: Any) -> None:
    """The update is the reference's, and does to the first task what its own gradient does."""
    net, optimizer = trained(name, dtype)
    losses = net.losses(0)
    rows = gradients_of(losses, net)
    diagonal = diagonal_of(optimizer, net)
    stats = OSGD(priority, metric=optimizer).backward(losses, net.parameters())
    update = update_of(net)
    expected, components = osgd([rows[i] for i in priority], metric=diagonal)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-6
    assert relative(update, expected) < tolerance
    first = rows[priority[0]]
    # float32 rounds relative to the update, which is up to 300 times as long as the first gradient
    other = first if dtype == torch.float64 else update
    unit = length(first, diagonal) * length(other, diagonal)
    assert abs(float(first @ (diagonal * (update - first)) / unit)) < tolerance
    # not by accident: in the ordinary metric the promise is broken, and components are oblique
    plain, _ = osgd([rows[i] for i in priority])
    assert relative(plain, expected) > 1e-3
    for i, u in enumerate(components):
        for v in components[:i]:
            cosine = u @ (diagonal * v) / length(u, diagonal) / length(v, diagonal)
            assert abs(float(cosine)) < 1e-10
    weights = stats.loss_weights
    again = sum(w * g for w, g in zip(weights, rows, strict=True))
    assert isinstance(again, Tensor)
    assert relative(update, again) < tolerance
    assert stats.gram is not None
    gram = torch.stack(rows) * diagonal @ torch.stack(rows).T
    top = max(float(group["lr"]) for group in optimizer.param_groups)
    norms = gram.diagonal().sqrt()
    assert ((stats.gram * top - gram).abs() <= 1e-6 * norms[:, None] * norms).all()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "sgd"])
def test_the_metric_is_what_the_optimizer_does_to_a_tiny_gradient(name: str) -> None:
    """Probed: a further step by a gradient too small for v moves by D, up to a common factor."""
    net, optimizer = trained(name)
    for group in optimizer.param_groups:
        group["weight_decay"], group["eps"] = 0.0, 1e-20
        if "momentum" in group:
            group["momentum"] = 0.0
    combiner = OSGD(metric=optimizer)
    assert combiner.metric is not None
    parameters = list(net.parameters())
    found = combiner.metric.of(parameters)
    assert found is not None
    touched = [(p, d) for p, d in zip(parameters, found, strict=True) if d is not None]
    assert len(touched) == len(parameters) - 2  # but the unused layer's
    expected = [d.dense() for _, d in touched]
    for p, _ in touched:
        optimizer.state[p].get("exp_avg", torch.zeros(1)).zero_()
        p.data.zero_()
        p.grad = torch.full_like(p, 1e-14)
    optimizer.step()
    pairs = zip(touched, expected, strict=True)
    ratio = torch.cat([(-p.detach() / d).reshape(-1) for (p, _), d in pairs])
    tolerance = 1e-3 if "centered" in name else 1e-6
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    "metric",
    [lambda p: None, lambda p: torch.ones_like(p), lambda p: torch.ones_like(p).float()],
    ids=["none", "ones", "float-ones"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_identity_metric_is_plain_osgd_bit_for_bit(metric: Any, dtype: torch.dtype) -> None:
    net = trunk(dtype)
    nets = net, copy.deepcopy(net)
    for other, given in zip(nets, (None, metric), strict=True):
        OSGD(metric=given).backward(other.losses(0), other.parameters())
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert q.grad is not None
            assert torch.equal(p.grad, q.grad)


@EACH
def test_before_the_first_step_it_is_plain_osgd_bit_for_bit(name: str) -> None:
    """There is no state to read; SGD's only metric is its rates, here equal."""
    net = trunk()
    plain = copy.deepcopy(net)
    OSGD(metric=OPTIMIZERS[name](net.parameters())).backward(net.losses(0), net.parameters())
    OSGD().backward(plain.losses(0), plain.parameters())
    assert torch.equal(update_of(net), update_of(plain))


def test_a_touched_parameter_without_a_state_makes_the_step_plain() -> None:
    """One that no loss touches does not."""
    net, optimizer = trained("adamw")
    assert not optimizer.state.get(net.unused.weight)
    plain = copy.deepcopy(net)
    OSGD().backward(plain.losses(0), plain.parameters())
    OSGD(metric=optimizer).backward(net.losses(0), net.parameters())
    assert relative(update_of(net), update_of(plain)) > 1e-3
    net.zero_grad()
    del optimizer.state[net.heads[0].bias]
    OSGD(metric=optimizer).backward(net.losses(0), net.parameters())
    assert torch.equal(update_of(net), update_of(plain))


def test_a_common_factor_changes_nothing_and_scales_are_no_limit() -> None:
    net, optimizer = trained("adamw")
    updates = []
    for factor in (1.0, 1e-8, 1e8):
        diagonals = {
            id(p): torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())) * factor
            for p in net.parameters()
        }
        net.zero_grad()
        OSGD(metric=lambda p, d=diagonals: d[id(p)]).backward(net.losses(0), net.parameters())
        updates.append(update_of(net))
    assert relative(updates[1], updates[0]) < 1e-6
    assert relative(updates[2], updates[0]) < 1e-6
    rates = []
    for factor in (1.0, 1e-6, 0.0):
        for group, lr in zip(optimizer.param_groups, (1e-2, 1e-2), strict=True):
            group["lr"] = lr * factor  # 0: before a warm-up
        net.zero_grad()
        OSGD(metric=optimizer).backward(net.losses(0), net.parameters())
        rates.append(update_of(net))
    assert torch.equal(rates[0], rates[1])
    assert torch.equal(rates[0], rates[2])


def test_a_frozen_group_takes_no_part_in_dot_products() -> None:
    net = trunk()
    optimizer = SGD([{"params": net.conv.parameters(), "lr": 0.0}, *groups_of_rest(net)], lr=0.1)
    losses = net.losses(0)
    rows = gradients_of(losses, net)
    OSGD(metric=optimizer).backward(losses, net.parameters())
    diagonal = torch.ones_like(rows[0])
    diagonal[: sum(p.numel() for p in net.conv.parameters())] = 0
    assert relative(update_of(net), osgd(rows, metric=diagonal)[0]) < 1e-11


def groups_of_rest(net: Trunk) -> list[dict[str, Any]]:
    ids = {id(p) for p in net.conv.parameters()}
    return [{"params": [p for p in net.parameters() if id(p) not in ids]}]


def test_the_layout_of_the_metric_does_not_matter() -> None:
    """A contiguous D for a channels_last parameter, and a D that is no block of memory."""
    net = trunk()
    made = {id(p): torch.rand_like(p) + 0.01 for p in net.parameters()}
    found = []
    for form in (lambda d: d, torch.Tensor.contiguous, strided):
        net.zero_grad()
        metric = {key: form(d) for key, d in made.items()}
        OSGD(metric=lambda p, m=metric: m[id(p)]).backward(net.losses(0), net.parameters())
        found.append(update_of(net))
    flat = torch.cat([made[id(p)].reshape(-1) for p in net.parameters()])
    assert relative(found[0], osgd(gradients_of(net.losses(0), net), metric=flat)[0]) < 1e-11
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def strided(d: Tensor) -> Tensor:
    """Every second entry of a larger tensor."""
    room = d.new_zeros(*d.shape[:-1], 2 * d.shape[-1])
    room[..., ::2] = d
    return room[..., ::2]


def test_nearly_parallel_gradients_in_the_metric() -> None:
    """Remainders of 1e-6 in the metric keep their digits; equal gradients leave one."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.zeros(5000, dtype=torch.float64))
    diagonal = 10.0 ** (4 * torch.rand(5000, dtype=torch.float64) - 2)
    a = torch.randn(5000, dtype=torch.float64)
    b = a + 1e-6 * torch.randn(5000, dtype=torch.float64)
    combiner = OSGD(metric=lambda p: diagonal)
    combiner.backward([w @ a, w @ b], [w])
    assert w.grad is not None
    dual = diagonal * a
    rest = w.grad - a
    assert abs(float(rest @ dual / (rest * diagonal @ rest * (a @ dual)).sqrt())) < 1e-7
    w.grad = None
    combiner.backward([w @ a, w @ a], [w])
    assert torch.equal(w.grad, a)


def test_under_a_grad_scaler_the_step_is_the_unscaled_one() -> None:
    nets = trunk(), trunk()
    optimizers = [AdamW(net.parameters(), lr=1e-3) for net in nets]
    combiners = [OSGD(metric=optimizer) for optimizer in optimizers]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        combiners[0].backward(nets[0].losses(step), nets[0].parameters())
        optimizers[0].step()
        scale = scaler.get_scale()
        losses = [scaler.scale(loss) for loss in nets[1].losses(step)]
        combiners[1].backward(losses, nets[1].parameters(), loss_scale=scale)
        scaler.step(optimizers[1])
        scaler.update()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_micro_batches_are_projected_once_in_the_metric() -> None:
    net, optimizer = trained("adamw")
    combiner = OSGD([1, 0, 2], metric=optimizer)
    for seed in (1, 2):
        combiner.accumulate(net.losses(seed), net.parameters())
    combiner.combine()
    found = update_of(net)
    rows = [a + b for a, b in zip(*(gradients_of(net.losses(s), net) for s in (1, 2)), strict=True)]
    expected, _ = osgd([rows[i] for i in (1, 0, 2)], metric=diagonal_of(optimizer, net))
    assert relative(found, expected) < 1e-11


def test_a_skipped_loss_leaves_the_others_in_the_metric() -> None:
    net, optimizer = trained("rmsprop")
    losses = net.losses(0)
    rows = gradients_of(losses, net)
    losses[1] = losses[1] * torch.nan
    combiner = OSGD(metric=optimizer, on_nonfinite="skip")
    stats = combiner.backward(losses, net.parameters())
    assert stats.skipped == (1,)
    expected, _ = osgd([rows[0], rows[2]], metric=diagonal_of(optimizer, net))
    assert relative(update_of(net), expected) < 1e-11


def test_refresh_keeps_the_weights_of_the_metric() -> None:
    """A step that refreshes is exact in the metric; the next uses its weights in one pass."""
    net, optimizer = trained("adamw")
    combiner = OSGD(metric=optimizer, refresh=3)
    losses = net.losses(0)
    rows = gradients_of(losses, net)
    first = combiner.backward(losses, net.parameters())
    assert relative(update_of(net), osgd(rows, metric=diagonal_of(optimizer, net))[0]) < 1e-11
    optimizer.step()
    net.zero_grad()
    losses = net.losses(1)
    rows = gradients_of(losses, net)
    second = combiner.backward(losses, net.parameters())
    assert not second.refreshed
    kept = sum(w * g for w, g in zip(first.loss_weights, rows, strict=True))
    assert isinstance(kept, Tensor)
    assert relative(update_of(net), kept) < 1e-11


def test_measure_reads_the_metric_and_changes_nothing() -> None:
    net, optimizer = trained("adamw")
    combiner = OSGD(metric=optimizer)
    losses = net.losses(0)
    measured = combiner.measure(losses, net.parameters())
    assert all(p.grad is None for p in net.parameters())
    stats = combiner.backward(losses, net.parameters())
    assert torch.equal(measured.loss_weights, stats.loss_weights)


def test_training_in_the_metric_equals_the_reference_over_many_steps() -> None:
    ours, plain = trunk(), trunk()
    steppers = [AdamW(groups_of(net), lr=1e-2) for net in (ours, plain)]
    combiner = OSGD([2, 1, 0], metric=steppers[0])
    for step in range(20):
        for stepper in steppers:
            stepper.zero_grad()
        combiner.backward(ours.losses(step), ours.parameters())
        rows = gradients_of(plain.losses(step), plain)
        diagonal = None if step == 0 else diagonal_of(steppers[1], plain)
        update, _ = osgd([rows[i] for i in (2, 1, 0)], metric=diagonal)
        start = 0
        for p in plain.parameters():
            if not any(p is q for q in plain.unused.parameters()):
                p.grad = update[start : start + p.numel()].view(p.shape).clone()
            start += p.numel()
        for stepper in steppers:
            stepper.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_nothing_is_read_from_a_device() -> None:
    """On tensors without values: an optimizer's state there, rates as tensors there."""
    device = torch.device("meta")
    weights = [nn.Parameter(torch.randn(5, device=device)) for _ in range(3)]
    rate = torch.tensor(0.1, device=device)
    groups = [{"params": weights[:1], "lr": rate}, {"params": weights[1:], "lr": rate}]
    optimizer = Adam([{"params": group["params"]} for group in groups])
    for group in optimizer.param_groups:
        group["lr"] = rate
    for w in weights:
        step = torch.tensor(3.0, device=device)
        optimizer.state[w] = {"step": step, "exp_avg_sq": torch.rand(5, device=device)}
    shared, *own = weights
    combiner = OSGD(metric=optimizer, on_nonfinite="ignore")
    combiner.backward([(shared * w).sin().sum() for w in own], weights)
    assert all(w.grad is not None for w in weights)


def test_a_fused_optimizer_whose_first_step_was_skipped() -> None:
    """It has a state of zeros after no step: every entry has the same factor."""
    net, optimizer = trunk(), None
    optimizer = AdamW(net.parameters(), fused=True)
    for p in net.parameters():
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    plain = copy.deepcopy(net)
    OSGD(metric=optimizer).backward(net.losses(0), net.parameters())
    OSGD().backward(plain.losses(0), plain.parameters())
    assert relative(update_of(net), update_of(plain)) < 1e-11


def test_pieces_of_ranks_are_the_metric_and_their_padding_is_finite() -> None:
    w = nn.Parameter(torch.rand(5, dtype=torch.float64))
    optimizer = AdamW([w], eps=0.0)
    w.grad = torch.rand_like(w)
    optimizer.step()
    metric = OptimizerMetric(optimizer).of([w])
    assert metric is not None
    assert metric[0] is not None
    partition = Partition([w], 3)
    pieces = [partition.piece(metric, rank)[0] for rank in range(3)]
    joined = torch.cat([piece.dense() for piece in pieces if piece is not None])
    assert joined.isfinite().all()
    assert torch.equal(joined[:5], metric[0].dense())


def test_what_is_no_metric_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match=r"metric must be Adam, .*, found Adamax: pass a function"):
        OSGD(metric=torch.optim.Adamax([w]))
    for wrong, name in ((AdamW, "AdamW"), ("adam", "str"), (nn.Linear, "Linear")):
        with pytest.raises(TypeError, match=f"metric must be an optimizer or .* found {name}"):
            OSGD(metric=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric and normalize=True must not be combined"):
        OSGD(normalize=True, metric=AdamW([w]))
    other = nn.Parameter(torch.ones(3))
    for combiner in (OSGD(metric=AdamW([w])), OSGD(metric=SGD([w], lr=0.1), refresh=2)):
        with pytest.raises(ValueError, match=r"parameters must be those .* shape \(3,\) at"):
            combiner.backward([w.sum() * other.sum()], [w, other])
        assert w.grad is None
    results: list[tuple[Any, type[Exception], str]] = [
        (1.0, TypeError, "metric must return a tensor or None, found float"),
        (torch.ones(3), ValueError, r"found shape \(3,\) for a parameter of shape \(2,\)"),
        (torch.tensor([1.0, -1.0]), ValueError, "at least 0, found -1.0 for"),
        (torch.tensor([1.0, torch.nan]), ValueError, "at least 0, found nan for"),
    ]
    for result, kind, text in results:
        combiner = OSGD(metric=lambda p, r=result: r)
        with pytest.raises(kind, match=text):
            combiner.backward([w.sum(), w.prod()], [w])
        assert w.grad is None
        combiner.discard()


def test_the_metric_is_shown_and_has_no_state() -> None:
    optimizer = AdamW([nn.Parameter(torch.ones(2))])
    combiner = OSGD(metric=optimizer)
    assert repr(combiner).endswith(", metric=AdamW)")
    assert combiner.state_dict() == {}
    made = make_combiner("osgd", metric=optimizer)
    assert isinstance(made, OSGD)
    assert repr(made).endswith(", metric=AdamW)")
