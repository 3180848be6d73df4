"""Bad input: one line that names the loss and the remedy, and ``.grad`` as it was."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anynest.multitask import (
    OSGD,
    NonFiniteLossError,
    NormSGD,
    TaskGradients,
    WeightedSGD,
    gradient_stats,
    list_methods,
    make_combiner,
    orthogonalize,
)

ALL = pytest.mark.parametrize("method", list_methods())
# checks are the same for all methods: one with a pass per loss, one with a single pass
BOTH = pytest.mark.parametrize("method", ["osgd", "sgd-mean"])
NAN, INF = float("nan"), float("inf")

Bad = Callable[[Tensor], Any]
BAD_LOSSES: dict[str, tuple[Bad, str]] = {
    "vector": (lambda w: [w.sum(), w * 2], r"loss 1 must be a scalar, found shape \(3,\).*mean"),
    "number": (lambda w: [3.0, w.sum()], "loss 0 must be a tensor, found float.*not its value"),
    "detached": (lambda w: [w.sum(), w.sum().detach()], "loss 1 needs no gradient.*no_grad"),
    "nan": (lambda w: [w.sum(), w.sum() * NAN], r"loss 1 is not finite \(nan\).*skip"),
    "infinite": (lambda w: [w.sum() + INF, w.sum()], r"loss 0 is not finite \(inf\).*skip"),
    "empty": (lambda w: [], "losses must hold at least one loss, found an empty list"),
    "an empty dict": (lambda w: {}, "losses must hold at least one loss, found an empty dict"),
    "numbered": (lambda w: {0: w.sum()}, r"must have names, found the key 0: pass a dict such as"),
    "a nan by name": (lambda w: {"a": w.sum(), "b": w.sum() * NAN}, r"loss b is not finite \(nan"),
    "a vector by name": (lambda w: {"a": w.sum(), "b": w * 2}, "loss b must be a scalar"),
    "not a list": (lambda w: w.sum(), r"losses must be a list.*found one tensor.*\[loss\]"),
    "nothing": (lambda w: None, r"losses must be a list.*found NoneType"),
    "complex": (lambda w: [w.sum() * 1j], r"loss 0 must be real, found torch.complex64: take .abs"),
}


def one_line(error: BaseException, pattern: str) -> None:
    assert "\n" not in str(error)
    assert re.search(pattern, str(error)), str(error)


@BOTH
@pytest.mark.parametrize("case", BAD_LOSSES)
def test_bad_losses_are_named_and_nothing_is_touched(method: str, case: str) -> None:
    make, pattern = BAD_LOSSES[case]
    w, fresh = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    w.grad = torch.full((3,), 7.0)
    with pytest.raises((ValueError, TypeError)) as caught:
        make_combiner(method).backward(make(w), [w, fresh])
    one_line(caught.value, pattern)
    assert torch.equal(w.grad, torch.full((3,), 7.0))
    assert fresh.grad is None


BAD_PARAMETERS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "none": (lambda w: [], r"at least one tensor, found none.*model\.parameters\(\) anew"),
    "used up": (lambda w: iter(()), "a generator is used up"),
    "module": (lambda w: nn.Linear(1, 1), r"found a module: pass model\.parameters\(\)"),
    "named": (lambda w: [("w", w)], "found tuple at position 0"),
    "computed": (lambda w: [w * 2], "parameter 0 of shape .* is computed from others"),
    "a number": (lambda w: 3, r"found int: pass model\.parameters\(\)"),
    "optimizer": (
        lambda w: torch.optim.SGD([w], lr=0.1),
        r"found an optimizer: pass optimizer\.param_groups",
    ),
    "frozen": (lambda w: [torch.ones(2)], "requires a gradient, found 1 frozen.*requires_grad_"),
}


@BOTH
@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_bad_parameters_are_named(method: str, case: str) -> None:
    make, pattern = BAD_PARAMETERS[case]
    w = nn.Parameter(torch.ones(3))
    with pytest.raises((ValueError, TypeError)) as caught:
        make_combiner(method).backward([w.sum()], make(w))
    one_line(caught.value, pattern)
    assert w.grad is None


UNTOUCHED = "^no loss touches any of the 3 parameters: pass the parameters of the network that made"


@BOTH
@pytest.mark.parametrize("before", [None, 7.0])
def test_parameters_that_no_loss_touches_are_refused(method: str, before: float | None) -> None:
    w, others = nn.Parameter(torch.ones(3)), [nn.Parameter(torch.ones(2)) for _ in range(3)]
    for other in others:
        other.grad = None if before is None else torch.full((2,), before)
    losses = [w.sum(), (w * w).sum()]
    with pytest.raises(ValueError, match=UNTOUCHED) as caught:
        make_combiner(method).backward(losses, others)
    one_line(caught.value, UNTOUCHED)
    for other in others:
        assert before == (None if other.grad is None else other.grad.mean().item())
    assert w.grad is None
    with pytest.raises(ValueError, match=UNTOUCHED):
        gradient_stats(losses, others)
    make_combiner(method).backward(losses, [w])  # the graph is whole


@ALL
def test_one_loss_of_several_may_touch_no_parameter(method: str) -> None:
    v, w = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    make_combiner(method).backward([v.sum(), w.exp().log().sum() * 2], [w])
    assert v.grad is None
    assert w.grad is not None
    assert w.grad.abs().sum() > 0


@ALL
def test_a_parameter_may_be_a_loss_itself(method: str) -> None:
    w = nn.Parameter(torch.ones(()))
    make_combiner(method).backward([w], [w])
    assert w.grad is not None


@pytest.mark.parametrize("priority", [1, "01", [0.0, 1.0], ["a", 1]])
def test_a_priority_that_is_no_list_of_indices_is_refused(priority: Any) -> None:
    with pytest.raises(TypeError) as caught:
        OSGD(priority=priority)
    expected = (
        "priority must be a list of loss indices, such as [1, 0], or of names, found "
        + repr(priority)
    )
    one_line(caught.value, re.escape(expected))


@pytest.mark.parametrize("method", ["osgd", "osgd-norm", "normsgd", "sgd-participants"])
def test_sparse_gradients_are_refused_where_rows_are_mixed(method: str) -> None:
    table = nn.Embedding(5, 2, sparse=True)
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    rows = table(torch.tensor([1, 3]))
    with pytest.raises(ValueError, match="loss 1 gives a sparse gradient") as caught:
        make_combiner(method).backward([(w * w).sum(), (rows * w).sum()], [w, *table.parameters()])
    one_line(caught.value, r"shape \(5, 2\): make it dense.*sparse=False")
    assert torch.equal(w.grad, torch.ones(2))
    assert table.weight.grad is None


def test_a_sparse_gradient_is_named_by_its_own_loss_beside_a_skipped_one() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    loss = table(torch.tensor([1, 3])).sum()
    with pytest.raises(ValueError, match="loss 1 gives a sparse gradient"):
        OSGD(on_nonfinite="skip").backward([loss * NAN, loss], table.parameters())


def test_weighted_sgd_takes_sparse_gradients_as_an_ordinary_backward_does() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    WeightedSGD().backward([table(torch.tensor([1, 3])).sum()], table.parameters())
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse


def test_complex_gradients_are_refused() -> None:
    w = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"loss 0 gives a complex gradient.*view_as_real"):
        OSGD().backward([w.abs().sum()], [w])


@pytest.mark.parametrize("priority", [[0, 0], [1, 2], [0], [0, 1, 2], [-1, 0]])
def test_a_priority_that_is_no_permutation_of_the_losses_is_refused(priority: list[int]) -> None:
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="priority must be a permutation of 0 to") as caught:
        OSGD(priority=priority).backward([w.sum(), (w * w).sum()], [w])
    one_line(caught.value, re.escape(str(priority)) + ".*highest first")
    assert w.grad is None


@pytest.mark.parametrize("reduction", ["mean", "sum", "participants"])
def test_weights_of_the_wrong_length_are_refused(reduction: Any) -> None:
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="one number per loss, found 3 for 2 losses"):
        WeightedSGD([1, 2, 3], reduction).backward([w.sum(), (w * w).sum()], [w])
    assert w.grad is None


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda: WeightedSGD([1.0, NAN]), "weights must be finite, found nan at position 1"),
        (lambda: WeightedSGD(["a"]), "weights must be numbers, found str at position 0"),  # type: ignore[list-item]
        (lambda: WeightedSGD([1, -1]), "at least 0 and not all 0.*reduction='sum'"),
        (lambda: WeightedSGD([]), "at least 0 and not all 0"),
        (lambda: WeightedSGD([1, 0], "participants"), "above 0 for reduction='participants'"),
        (lambda: WeightedSGD(reduction="avg"), "reduction must be one of 'mean', .*found 'avg'"),  # type: ignore[arg-type]
        (lambda: OSGD(reduction="avg"), "reduction must be one of 'sum', 'mean', found 'avg'"),  # type: ignore[arg-type]
        (
            lambda: OSGD(on_nonfinite="drop"),
            "on_nonfinite must be one of 'raise', 'skip', 'ignore'",
        ),  # type: ignore[arg-type]
        (lambda: NormSGD(C=0.0), "C must be a positive number or 'calibrated', found 0.0"),
        (lambda: NormSGD(C="auto"), "C must be a positive number or 'calibrated', found 'auto'"),  # type: ignore[arg-type]
        (lambda: OSGD(normalize="no"), "normalize must be True or False, found 'no'"),  # type: ignore[arg-type]
        (
            lambda: OSGD(calibration_steps=0),
            "calibration_steps must be a whole number from 1, found 0",
        ),
        (lambda: make_combiner("osdg"), "found 'osdg': did you mean 'osgd'"),
        (lambda: make_combiner("xyzzy"), r"one of normsgd, osgd, .*found 'xyzzy': see list_meth"),
        (lambda: make_combiner("sgd", priority=[0]), "takes no option 'priority': it takes wei"),
        (lambda: make_combiner("osgd-norm", normalize=False), "takes no option 'normalize'"),
        (lambda: TaskGradients.stack([]), "gradients must be of at least one"),
        (lambda: TaskGradients.stack([[None], []]), "task 0 has 1, task 1 has 0; put None"),
        (
            lambda: orthogonalize(TaskGradients.stack([[torch.ones(2)]] * 2), [1, 1]),
            r"priority must be a permutation of 0 to 1 for 2 losses, found \[1, 1\]",
        ),
    ],
)
def test_bad_options_are_named(make: Callable[[], object], pattern: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    one_line(caught.value, pattern)


@pytest.mark.parametrize(
    ("scale", "pattern"),
    [
        (0.0, r"above 0 and finite, found 0\.0: pass scaler\.get_scale"),
        (NAN, "above 0 and finite, found nan"),
        (torch.tensor(-1.0), r"above 0 and finite, found -1\.0"),
        (torch.ones(2), r"one number, found shape \(2,\)"),
        (None, "must be a number, found NoneType"),
        ("4", "must be a number, found str"),
    ],
)
def test_a_bad_loss_scale_is_named(scale: Any, pattern: str) -> None:
    w = nn.Parameter(torch.ones(3))
    for combiner in (OSGD(normalize=True), NormSGD(), WeightedSGD()):
        with pytest.raises((ValueError, TypeError)) as caught:
            combiner.backward([w.sum()], [w], loss_scale=scale)
        one_line(caught.value, pattern)
        assert w.grad is None


@pytest.mark.parametrize("inside", ["some parameters", "all that are given"])
@ALL
def test_reentrant_checkpointing_is_refused(method: str, inside: str) -> None:
    """It would silently leave what is inside untrained."""
    first, body = nn.Linear(4, 8), nn.Linear(8, 8)
    heads = [nn.Linear(8, 1) for _ in range(2)]
    parameters = [*body.parameters(), *heads[0].parameters(), *heads[1].parameters()]
    if inside == "some parameters":
        parameters += first.parameters()

    def losses(reentrant: bool) -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(16, 4, requires_grad=True)
        inner: Callable[[Tensor], Tensor] = lambda t: body(first(t)).relu()  # noqa: E731
        h = checkpoint(inner, x, use_reentrant=reentrant)
        return [head(h).square().mean() for head in heads]

    combiner = make_combiner(method)
    with pytest.raises(ValueError, match="use_reentrant=False") as caught:
        combiner.backward(losses(True), parameters)
    one_line(caught.value, "must not be reentrant")
    assert all(p.grad is None for p in parameters)
    combiner.backward(losses(False), parameters)
    assert all(p.grad is not None for p in parameters)


@ALL
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_skipped_loss_leaves_the_step_of_the_others(method: str, bad: float) -> None:
    a, b = torch.randn(2, 4)
    w = nn.Parameter(torch.zeros(4))
    make_combiner(method).backward([w @ a, w @ b], [w])
    expected = w.grad
    w.grad = None
    losses = [w @ a, (w @ torch.ones(4)) + bad, w @ b]
    stats = make_combiner(method, on_nonfinite="skip").backward(losses, [w])
    assert expected is not None
    assert w.grad is not None
    torch.testing.assert_close(w.grad, expected, rtol=1e-6, atol=0)
    assert stats.skipped == (1,)
    assert stats.loss_weights[1] == 0
    assert len(stats.loss_weights) == 3
    listed = stats.to_dict()
    assert listed["losses"][1] is None
    assert listed["skipped"] == [1]
    if stats.norms is not None:
        assert torch.isnan(stats.norms).tolist() == [False, True, False]


def test_priority_and_weights_keep_their_meaning_beside_a_skipped_loss() -> None:
    a, b, c = torch.randn(3, 4)
    w = nn.Parameter(torch.zeros(4))
    OSGD(priority=[1, 0]).backward([w @ a, w @ b], [w])
    expected = w.grad
    w.grad = None
    stats = OSGD(priority=[2, 1, 0], on_nonfinite="skip").backward([w @ a, w @ c * NAN, w @ b], [w])
    assert expected is not None
    assert w.grad is not None
    torch.testing.assert_close(w.grad, expected)
    assert stats.coefficients is not None
    assert stats.coefficients[2, 0] == 0
    assert torch.isnan(stats.coefficients[1]).all()
    w.grad = None
    WeightedSGD([1, 5, 3], on_nonfinite="skip").backward([w @ a, w @ c * NAN, w @ b], [w])
    assert w.grad is not None
    torch.testing.assert_close(w.grad, (a + 3 * b) / 4)


@ALL
def test_when_every_loss_is_skipped_nothing_happens(method: str) -> None:
    w = nn.Parameter(torch.ones(3))
    stats = make_combiner(method, on_nonfinite="skip").backward([w.sum() * NAN] * 2, [w])
    assert stats.skipped == (0, 1)
    assert w.grad is None
    assert stats.to_dict()["losses"] == [None, None]


def test_the_error_for_a_non_finite_loss_can_be_told_from_others() -> None:
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(NonFiniteLossError, match="loss 0"):
        gradient_stats([w.sum() * NAN], [w])
    assert issubclass(NonFiniteLossError, ValueError)


@ALL
def test_a_non_finite_gradient_of_a_finite_loss_reaches_grad(method: str) -> None:
    """As in loss.backward(), for whoever looks for it there: a GradScaler, an anomaly check."""
    w = nn.Parameter(torch.tensor([0.0, 1.0]))
    make_combiner(method).backward([w.sqrt().sum(), w.square().sum()], [w])
    assert w.grad is not None
    assert not torch.isfinite(w.grad).all()


def test_numpy_scalars_are_numbers() -> None:
    """And leave as plain Python numbers."""
    one, two = np.float32(1.0), np.int64(2)
    w = nn.Parameter(torch.ones(2))
    losses = [w.sum(), w.prod() + w.square().sum()]
    made = [
        OSGD(np.array([1, 0]), normalize=True, C=one, calibration_steps=two, refresh=two),
        NormSGD(C=one, calibration_steps=two),
        WeightedSGD(np.array([1.0, 2.0], np.float32)),
    ]
    for combiner in made:
        combiner.backward(losses, [w], loss_scale=one, samples=two, retain_graph=True)
        combiner.backward(losses, [w], loss_scale=np.float64(4), samples=one, retain_graph=True)
        stats = combiner.backward(losses, [w], retain_graph=True)
        json.dumps([combiner.state_dict(), stats.to_dict()], allow_nan=False)
        assert "np." not in repr(combiner)
    assert repr(made[0]) == (
        "OSGD(priority=(1, 0), normalize=True, reduction='sum', C=1.0, calibration_steps=2, "
        "on_nonfinite='raise', refresh=2, metric=None)"
    )
    for wrong in (np.bool_(True), np.float32("nan"), np.array([1.0, 2.0])):
        with pytest.raises((ValueError, TypeError), match="loss_scale must be"):
            OSGD().backward(losses, [w], loss_scale=wrong, retain_graph=True)
