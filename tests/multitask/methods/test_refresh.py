"""OSGD(refresh=k): exact at every k-th step, one ordinary backward pass of the kept w in between."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anynest.multitask import OSGD, Stats, make_combiner
from anynest.multitask.methods.refresh import drift

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]
NAN = float("nan")
A = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
B = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "norm, mean, priority": {
        "normalize": True,
        "reduction": "mean",
        "priority": [1, 2, 0],
        "C": 0.01,
    },
}
ALL_OPTIONS = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def flat(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None])


def train(
    network: nn.Module,
    losses: Losses,
    combiner: OSGD,
    steps: range,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[Stats]:
    stepper = optimizer or torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    seen = []
    for step in steps:
        stepper.zero_grad()
        seen.append(combiner.backward(losses(network, step), network.parameters()))
        stepper.step()
    return seen


def quadratic(w: Tensor, directions: Tensor) -> list[Tensor]:
    return [w @ direction for direction in directions]


POINT = nn.Parameter(torch.zeros(2))  # the same parameter in all calls


def steps_of(combiner: OSGD, all_directions: list[Tensor]) -> list[Stats]:
    POINT.grad = None
    return [combiner.backward(quadratic(POINT, each), [POINT]) for each in all_directions]


@ALL_OPTIONS
def test_a_refresh_is_exact_and_the_steps_between_take_its_weights(
    options: dict[str, Any], three_exits: Make, digit_losses: Losses
) -> None:
    network, twin = three_exits(), three_exits()
    combiner = OSGD(**options, refresh=3)
    stepper = torch.optim.SGD(network.parameters(), lr=0.05)
    kept = torch.empty(0)
    for step in range(7):
        twin.load_state_dict(network.state_dict())
        network.zero_grad()
        twin.zero_grad()
        stats = combiner.backward(digit_losses(network, step), network.parameters())
        losses = digit_losses(twin, step)
        if step % 3 == 0:
            exact = OSGD(**options).backward(losses, twin.parameters())
            assert torch.equal(flat(network), flat(twin))
            assert torch.equal(stats.loss_weights, exact.loss_weights)
            assert stats.refreshed
            assert (stats.drift is None) == (step == 0)
            kept = stats.loss_weights
        else:
            total = sum(w * loss for w, loss in zip(kept.float(), losses, strict=True))
            assert isinstance(total, Tensor)
            total.backward()
            assert torch.equal(flat(network), flat(twin))
            assert torch.equal(stats.loss_weights, kept)
            assert not stats.refreshed
            assert stats.gram is stats.cosines is stats.coefficients is stats.drift is None
        assert json.loads(json.dumps(stats.to_dict()))["refreshed"] == (step % 3 == 0)
        stepper.step()


def test_a_step_between_walks_the_graph_once(three_exits: Make, digit_losses: Losses) -> None:
    """As one backward pass of the weighted loss: no pass per loss, no Gram matrix, no copies."""

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    network = three_exits()
    combiner = OSGD(refresh=100)
    combiner.backward(digit_losses(network, 0), network.parameters())
    losses = digit_losses(network, 0)
    network.zero_grad()
    with Count() as plain:
        torch.autograd.backward(losses, retain_graph=True)
    network.zero_grad()
    with Count() as ours:
        combiner.backward(losses, network.parameters())
    backward = [name for name in plain.names if "convolution_backward" in name]
    assert [name for name in ours.names if "convolution_backward" in name] == backward
    assert len(backward) == 3
    extra = len(ours.names) - len(plain.names)
    assert 0 < extra < 40  # a few numbers: the losses' values, their finiteness, three seeds
    assert not any("mm" in name for name in set(ours.names) - set(plain.names))
    with pytest.raises(RuntimeError, match="second time"):
        losses[0].backward()  # the graph is freed


def test_drift_is_the_relative_error_of_the_update(three_exits: Make, digit_losses: Losses) -> None:
    """Against the two updates themselves, in float64; a common scale of the gradients cancels."""
    network = three_exits().double()
    combiner = OSGD(refresh=4)
    train(network, digit_losses, combiner, range(4))
    kept = torch.tensor(combiner.state_dict()["refresh"]["weights"])
    losses = digit_losses(network, 4)
    network.zero_grad()
    torch.autograd.backward(
        losses, [w.to(loss.dtype) for w, loss in zip(kept, losses, strict=True)], retain_graph=True
    )
    stale = flat(network)
    network.zero_grad()
    stats = combiner.backward(losses, network.parameters())
    exact = flat(network)
    assert stats.drift is not None
    assert stats.gram is not None
    want = (stale - exact).norm() / exact.norm()
    assert want > 1e-3
    torch.testing.assert_close(stats.drift, want, rtol=1e-5, atol=0)
    scaled = drift(stats.gram * 2.0**32, stats.loss_weights, kept.double())
    torch.testing.assert_close(scaled, want, rtol=1e-5, atol=0)
    zero, ones = torch.zeros(3, 3), torch.ones(3)
    assert drift(zero, ones, 2 * ones) == 0


@ALL_OPTIONS
def test_a_resumed_run_equals_an_uninterrupted_one(
    options: dict[str, Any], three_exits: Make, digit_losses: Losses
) -> None:
    """Bit for bit, from wherever it is interrupted, through torch.save and weights_only."""
    whole = three_exits()
    combiner = OSGD(**options, refresh=3)
    stepper = torch.optim.SGD(whole.parameters(), lr=0.01, momentum=0.9)
    saved = []
    for step in range(7):
        buffer = io.BytesIO()
        parts = (whole.state_dict(), stepper.state_dict(), combiner.state_dict())
        torch.save(parts, buffer)
        saved.append(buffer.getvalue())
        train(whole, digit_losses, combiner, range(step, step + 1), stepper)
    for step, state in enumerate(saved):
        network = three_exits(seed=1)
        again = OSGD(**options, refresh=3)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        model, moments, memory = torch.load(io.BytesIO(state), weights_only=True)
        network.load_state_dict(model)
        optimizer.load_state_dict(moments)
        again.load_state_dict(json.loads(json.dumps(memory)))
        train(network, digit_losses, again, range(step, 7), optimizer)
        for p, q in zip(whole.parameters(), network.parameters(), strict=True):
            assert torch.equal(p, q)


def test_states_of_other_options_are_refused() -> None:
    lazy, plain = OSGD(refresh=4), OSGD()
    with pytest.raises(ValueError, match=r"keeps no state, found \['refresh'\]"):
        plain.load_state_dict(lazy.state_dict())
    with pytest.raises(ValueError, match=r"must hold 'refresh', found \[\]"):
        lazy.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match=r"state of refresh must hold \['age'.*found \['k'\]"):
        lazy.load_state_dict({"refresh": {"k": 4}})
    with pytest.raises(ValueError, match=r"state of refresh must hold \['age'.*found None"):
        lazy.load_state_dict({"refresh": None})
    good = {"age": 0, "tasks": [0, 1, 2]}
    for weights in ([1.0, 2.0], [1.0, NAN, 1.0]):
        with pytest.raises(ValueError, match=r"a finite weight for each of its tasks \[0, 1, 2\]"):
            lazy.load_state_dict({"refresh": {**good, "weights": weights}})


def test_weights_found_on_other_parameters_are_not_used() -> None:
    torch.manual_seed(0)
    a, b, c = (nn.Parameter(torch.randn(5, dtype=torch.float64)) for _ in range(3))
    targets = torch.randn(2, 5, dtype=torch.float64)

    def losses() -> list[Tensor]:
        together = [((a + b) * targets[0]).sum() ** 2, ((a - b) * targets[1]).sum() ** 2]
        return [together[i] + 3 * (b * targets[1 - i]).sum() + c.square().sum() for i in range(2)]

    combiner = OSGD(refresh=3)
    chosen = [[a, b], [a, b], [b], [b], [a], [b, c], [b, c], [b, c]]
    for parameters, refreshed in zip(chosen, [1, 0, 1, 0, 1, 1, 0, 0], strict=True):
        stats = combiner.backward(losses(), parameters)
        assert stats.refreshed == refreshed
        if refreshed:
            exact = OSGD().backward(losses(), parameters)
            assert torch.equal(stats.loss_weights, exact.loss_weights)
    state = json.loads(json.dumps(combiner.state_dict()))
    resumed = OSGD(refresh=9)
    resumed.load_state_dict(state)
    # a state does not identify its parameters
    assert not resumed.backward(losses(), [b, c]).refreshed


@pytest.mark.parametrize("refresh", [0, 2.0, True, "often", "auto"])
def test_bad_options_are_named(refresh: Any) -> None:
    with pytest.raises(ValueError, match="refresh must be a whole number from 1") as caught:
        OSGD(refresh=refresh)
    assert str(caught.value).endswith(f"found {refresh!r}: try 16")


def test_the_options_show() -> None:
    assert repr(OSGD(refresh=4)).endswith(", refresh=4, metric=None)")
    shown = repr(make_combiner("osgd-mean", refresh=8))
    assert "reduction='mean'" in shown
    assert shown.endswith(", refresh=8, metric=None)")
    assert repr(eval(shown)) == shown


def test_another_set_of_losses_refreshes() -> None:
    """A skipped loss, or another number of them: w is computed anew for other losses."""
    a, b, c = torch.randn(3, 5)
    combiner = OSGD(refresh=4, on_nonfinite="skip")
    w, v = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))

    def step(losses: Callable[[Tensor], list[Tensor]]) -> tuple[bool, Tensor, Stats]:
        w.grad = v.grad = None
        stats = combiner.backward(losses(w), [w])
        OSGD(on_nonfinite="skip").backward(losses(v), [v])
        assert w.grad is not None
        assert v.grad is not None
        if stats.refreshed:
            assert torch.equal(w.grad, v.grad)
        return stats.refreshed, w.grad, stats

    def three(w: Tensor) -> list[Tensor]:
        return [w @ a, w @ b, w @ c]

    def skipping(w: Tensor) -> list[Tensor]:
        return [w @ a, w @ b * NAN, w @ c]

    assert [step(three)[0] for _ in range(2)] == [True, False]
    seen = [step(skipping) for _ in range(3)]
    assert [refreshed for refreshed, _, _ in seen] == [True, False, False]
    assert torch.allclose(seen[0][1], seen[1][1])
    assert seen[1][2].skipped == (1,)
    assert seen[1][2].loss_weights[1] == 0
    assert [step(three)[0] for _ in range(5)] == [True, False, False, False, True]
    assert [step(lambda w: three(w)[:2])[0] for _ in range(2)] == [True, False]


def test_a_step_without_a_finite_loss_does_not_count() -> None:
    combiner = OSGD(refresh=3, on_nonfinite="skip")
    seen = steps_of(combiner, [A, A, A * NAN, A * NAN, A, A])
    assert [stats.refreshed for stats in (seen[0], seen[1], seen[4], seen[5])] == [1, 0, 0, 1]


def test_micro_batches_of_one_step_are_one_step(three_exits: Make, digit_losses: Losses) -> None:
    """The interval counts combine(); a step in between accumulates one gradient per tensor."""
    plain, ours = three_exits().double().eval(), three_exits().double().eval()
    one, two = OSGD(refresh=2), OSGD(refresh=2)
    for step in range(4):
        parts = [[loss / 2 for loss in digit_losses(plain, 2 * step + n)] for n in (0, 1)]
        plain.zero_grad()
        whole = [a + b for a, b in zip(*parts, strict=True)]
        want = one.backward(whole, plain.parameters())
        ours.zero_grad()
        for n in (0, 1):
            two.accumulate([x / 2 for x in digit_losses(ours, 2 * step + n)], ours.parameters())
            assert all(p.grad is None for p in ours.parameters())
        found = two.combine()
        assert found.refreshed == want.refreshed == (step % 2 == 0)
        torch.testing.assert_close(flat(ours), flat(plain), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.loss_weights, want.loss_weights, rtol=1e-8, atol=0)
        for network in (plain, ours):
            with torch.no_grad():
                for p in network.parameters():
                    assert p.grad is not None
                    p.sub_(0.05 * p.grad)


def test_losses_skipped_in_one_micro_batch_of_a_step_in_between() -> None:
    w = nn.Parameter(torch.zeros(2))
    combiner = OSGD(refresh=9, on_nonfinite="skip")
    kept = combiner.backward(quadratic(w, B), [w]).loss_weights
    w.grad = None
    combiner.accumulate(quadratic(w, B), [w])
    combiner.accumulate([w @ B[0] * NAN, w @ B[1]], [w])
    stats = combiner.combine()
    assert not stats.refreshed
    assert stats.skipped == ()
    torch.testing.assert_close(w.grad, (kept[0] * B[0] + 2 * kept[1] * B[1]).float())
    w.grad = None
    combiner.accumulate(quadratic(w, B), [w])
    combiner.accumulate([w @ B[0] * NAN, w @ B[1]], [w])
    combiner.accumulate([w @ B[0] * NAN, w @ B[1]], [w])
    # the mean over the micro-batches
    torch.testing.assert_close(combiner.combine().loss_weights, kept * torch.tensor([1 / 3, 1.0]))


def test_a_loss_that_the_refresh_did_not_know_has_no_weight() -> None:
    w = nn.Parameter(torch.zeros(2))
    combiner = OSGD(refresh=9, on_nonfinite="skip")
    combiner.backward([w @ B[0], w @ B[1] * NAN], [w])
    w.grad = None
    combiner.accumulate([w @ B[0], w @ B[1] * NAN], [w])
    combiner.accumulate(quadratic(w, B), [w])
    stats = combiner.combine()
    assert not stats.refreshed
    torch.testing.assert_close(w.grad, 2 * B[0])
    assert stats.loss_weights.tolist() == [1.0, 0.0]


def test_a_state_is_loaded_into_a_combiner_that_has_stepped_on_others() -> None:
    w, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    first, second = OSGD(refresh=9), OSGD(refresh=9)
    kept = first.backward(quadratic(w, B), [w]).loss_weights
    second.backward(quadratic(other, 2 * B.flip(0)), [other])
    second.load_state_dict(first.state_dict())
    stats = second.backward(quadratic(w, B), [w])
    assert not stats.refreshed
    assert torch.equal(stats.loss_weights, kept)


@ALL_OPTIONS
def test_under_a_grad_scaler_steps_are_the_unscaled_ones(
    options: dict[str, Any], three_exits: Make, digit_losses: Losses
) -> None:
    """Though the scale changes between the refresh and the steps that use its weights."""
    plain, scaled = three_exits(), three_exits()
    combiners = [OSGD(**options, refresh=3) for _ in range(2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    steppers = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in (plain, scaled)]
    for step in range(4):
        for stepper in steppers:
            stepper.zero_grad()
        combiners[0].backward(digit_losses(plain, step), plain.parameters())
        steppers[0].step()
        losses = [scaler.scale(loss) for loss in digit_losses(scaled, step)]
        combiners[1].backward(losses, scaled.parameters(), loss_scale=scaler.get_scale())
        scaler.step(steppers[1])
        scaler.update()
    assert scaler.get_scale() == 2.0**14
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("bad", [torch.inf, NAN])
def test_weights_of_a_refresh_that_overflowed_are_not_kept(bad: float, before: int) -> None:
    """Its gradient reaches the GradScaler unchanged; the next step computes w anew."""
    w = nn.Parameter(torch.zeros(2))
    combiner = OSGD(refresh=2)
    for _ in range(before):
        combiner.backward(quadratic(w, A), [w])
    w.grad = None
    losses = quadratic(w, A)
    losses[1].register_hook(lambda grad: grad * bad)
    stats = combiner.backward(losses, [w])
    assert w.grad is not None
    assert not torch.isfinite(w.grad).all()
    assert stats.refreshed
    w.grad = None
    assert combiner.backward(quadratic(w, A), [w]).refreshed
    torch.testing.assert_close(w.grad, torch.tensor([1.0, 1.0]))
    json.dumps(combiner.state_dict(), allow_nan=False)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_where_nothing_may_be_read_older_weights_or_even_ones_stand_in(reduction: Any) -> None:
    share = 1.0 if reduction == "sum" else 0.5
    combiner = OSGD(refresh=2, on_nonfinite="ignore", reduction=reduction)
    w = nn.Parameter(torch.zeros(2))

    def step(bad: bool) -> Stats:
        losses = quadratic(w, A)
        if bad:
            losses[0].register_hook(lambda grad: grad * NAN)
        return combiner.backward(losses, [w])

    assert torch.isnan(step(True).loss_weights).any()
    assert step(False).loss_weights.tolist() == [share, share]
    assert step(False).loss_weights.tolist() == [0.5 * share, share]
    assert step(False).loss_weights.tolist() == [0.5 * share, share]
    step(True)
    assert step(False).loss_weights.tolist() == [0.5 * share, share]


def test_kept_weights_stay_where_a_captured_graph_reads_them_and_stats_are_copies() -> None:
    combiner = OSGD(refresh=2, on_nonfinite="ignore")
    seen = steps_of(combiner, [A, A])
    assert combiner.kept is not None
    place = combiner.kept.weights.data_ptr()
    seen += steps_of(combiner, [B, B])
    assert combiner.kept.weights.tolist() == [1.5, 1.0]
    assert combiner.kept.weights.data_ptr() == place
    assert [stats.loss_weights[0].item() for stats in seen] == [0.5, 0.5, 1.5, 1.5]


def test_every_step_is_exact_while_c_is_calibrated(three_exits: Make, digit_losses: Losses) -> None:
    combiner = OSGD(normalize=True, C="calibrated", calibration_steps=3, refresh=4)
    plain = OSGD(normalize=True, C="calibrated", calibration_steps=3)
    one, two = three_exits(), three_exits()
    seen = train(one, digit_losses, combiner, range(6))
    train(two, digit_losses, plain, range(3))
    assert [stats.refreshed for stats in seen] == [1, 1, 1, 0, 0, 0]
    assert combiner.constant.value() == plain.constant.value()
    state = combiner.state_dict()
    assert set(state) == {"done", "sgd", "unit", "refresh"}
    OSGD(normalize=True, C="calibrated", refresh=4).load_state_dict(state)


def test_autocast_steps_in_between_follow_the_weighted_loss(
    three_exits: Make, digit_losses: Losses
) -> None:
    network = three_exits()
    combiner = OSGD(refresh=2)
    for step in range(2):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = digit_losses(network, step)
        stats = combiner.backward(losses, network.parameters(), retain_graph=True)
    found = flat(network)
    network.zero_grad()
    total = sum(w * loss for w, loss in zip(stats.loss_weights.float(), losses, strict=True))
    assert isinstance(total, Tensor)
    total.backward()
    assert torch.equal(found, flat(network))
