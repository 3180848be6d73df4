"""Properties of the pure rules: orthogonality, scale, zero, parallel, order, near-parallel rows."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anynest.multitask import (
    TaskGradients,
    WeightedSGD,
    gram_matrix,
    list_methods,
    make_combiner,
    normalize,
    orthogonalize,
    weighted_sum,
)
from anynest.multitask.methods import reference
from anynest.multitask.methods.rules import update_norm

SCALES = [1e-10, 1e-3, 1.0, 1e3, 1e10]


def random_grads(
    seed: int, tasks: int, shapes: list[tuple[int, ...]], presence: float = 1.0
) -> list[list[Tensor | None]]:
    """Gradients of random direction; each tensor is missing from a task with 1 - presence."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(shape, generator=generator)
            if torch.rand((), generator=generator) < presence
            else None
            for shape in shapes
        ]
        for _ in range(tasks)
    ]


def flat(grads: list[Tensor | None], shapes: list[tuple[int, ...]]) -> Tensor:
    return reference.padded(grads, [torch.empty(shape) for shape in shapes])


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm().clamp(min=1e-300))


def exact_osgd(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 2 in rational numbers, rounded to float64 at the end: update [P], components [S, P].

    In float64 a row that repeats two others leaves rounding noise, onto which the printed algorithm
    goes on to project; in rational numbers it leaves nothing.
    """
    kept: list[list[Fraction]] = []
    for g in ([Fraction(x) for x in row] for row in rows.tolist()):
        u = list(g)
        for v in kept:
            square = sum((x * x for x in v), start=Fraction(0))
            if square:
                share = sum((x * y for x, y in zip(g, v, strict=True)), start=Fraction(0)) / square
                u = [x - share * y for x, y in zip(u, v, strict=True)]
        kept.append(u)
    update = [float(sum(column, start=Fraction(0))) for column in zip(*kept, strict=True)]
    components = [[float(x) for x in u] for u in kept]
    return torch.tensor(update, dtype=torch.float64), torch.tensor(components, dtype=torch.float64)


SHAPES = [(2, 3), (), (4,), (2, 1, 2)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[Tensor | None]], list[int]]:
    """Two to five tasks over four tensors, some missing, zero, repeated or of wild scale."""
    tasks = draw(st.integers(2, 5))
    seed = draw(st.integers(0, 2**20))
    grads = random_grads(seed, tasks, SHAPES, draw(st.sampled_from([1.0, 0.6])))
    for i in range(tasks):
        scale = draw(st.sampled_from([0.0, *SCALES]))
        if i and draw(st.integers(0, 4)) == 0:
            grads[i] = list(grads[i - 1])
        else:
            grads[i] = [None if g is None else g * scale for g in grads[i]]
    return grads, draw(st.permutations(range(tasks)))


@given(problems())
@settings(max_examples=150, deadline=None)
def test_components_are_those_of_algorithm_2(
    problem: tuple[list[list[Tensor | None]], list[int]],
) -> None:
    grads, priority = problem
    vectors = [flat(row, SHAPES) for row in grads]
    g, kept = exact_osgd(torch.stack([vectors[i] for i in priority]))
    components, _ = orthogonalize(TaskGradients.stack(grads), priority)
    update = weighted_sum(components, torch.ones(len(grads)))
    assert relative(flat(update, SHAPES), g) < 1e-6
    found = components.tensors()
    for u, i in zip(kept, priority, strict=True):
        # float32 cannot hold a remainder smaller than the rounding of what it is left from
        assert (flat(found[i], SHAPES) - u).norm() <= 1e-6 * u.norm() + 2e-7 * vectors[i].norm()


@given(problems())
@settings(max_examples=200, deadline=None)
def test_components_and_coefficients_have_their_properties(
    problem: tuple[list[list[Tensor | None]], list[int]],
) -> None:
    grads, priority = problem
    components, L = orthogonalize(TaskGradients.stack(grads), priority)
    tensors = components.tensors()
    u = torch.stack([flat(row, SHAPES) for row in tensors])
    g = torch.stack([flat(row, SHAPES) for row in grads])
    # every component is orthogonal to every earlier one
    for a, i in enumerate(priority):
        for j in priority[:a]:
            assert abs(u[i] @ u[j]) <= 1e-6 * u[i].norm() * u[j].norm()
    # the update agrees with the first gradient on its own direction: exact but for the update's
    # rounding to float32, which a far larger later task dominates
    update = flat(weighted_sum(components, torch.ones(len(grads))), SHAPES)
    first = g[priority[0]]
    slack = 1e-6 * first @ first + 1e-7 * update.norm() * first.norm()
    assert abs(update @ first - first @ first) <= slack
    # g = L u, with L unit lower-triangular in the order of priority
    ordered = L[priority][:, priority]
    assert torch.equal(ordered, ordered.tril())
    assert torch.equal(ordered.diagonal(), torch.ones(len(grads), dtype=torch.float64))
    assert ((L @ u - g).norm(dim=1) <= 1e-6 * g.norm(dim=1)).all()
    # a component has entries only where a task up to it has
    for a, i in enumerate(priority):
        for p in range(len(SHAPES)):
            touched = any(grads[j][p] is not None for j in priority[: a + 1])
            assert (tensors[i][p] is not None) == touched


@pytest.mark.parametrize("perturbation", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("scale", SCALES)
def test_near_parallel_rows_are_exact_to_1e_6(perturbation: float, scale: float) -> None:
    """Relative to the norm of the update, and of every single component for itself.

    The hard part is the last row: a plain direction, nearly all of which lies along the tiny
    remainder of the second. Its component hangs on that remainder's direction alone.
    """
    for seed in range(3):
        torch.manual_seed(seed)
        base, a, b, c = torch.randn(4, 16)
        rows = torch.stack([base, base + perturbation * a, base + perturbation * b, a + 0.1 * c])
        rows = (scale * rows).float()
        update, kept = exact_osgd(rows)
        components, L = orthogonalize(TaskGradients.stack([[row] for row in rows]))
        found = weighted_sum(components, torch.ones(4))[0]
        assert found is not None
        assert relative(found, update) < 1e-6
        assert relative(L @ kept, rows.double()) < 1e-6
        for u, (v,) in zip(kept, components.tensors(), strict=True):
            assert v is not None
            assert relative(v, u) < 1e-6


@pytest.mark.parametrize("perturbation", [1e-1, 1e-3, 1e-6])
def test_near_parallel_long_rows_agree_with_the_reference(perturbation: float) -> None:
    """Over more entries than one chunk holds, relative to the norm of the update.

    Of the tiny components themselves the printed algorithm, in float64, knows but three digits
    here; the rational numbers above show them right.
    """
    base = torch.randn(100_003)
    rows = [base + perturbation * torch.randn(100_003) for _ in range(4)]
    g, kept = reference.osgd([row.double() for row in rows])
    components, _ = orthogonalize(TaskGradients.stack([[row] for row in rows]))
    found = weighted_sum(components, torch.ones(4))[0]
    assert found is not None
    assert relative(found, g) < 1e-6
    for u, (v,) in zip(kept, components.tensors(), strict=True):
        assert v is not None
        assert (v.double() - u).norm() < 1e-6 * g.norm()


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.01, -2.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_parallel_rows_leave_exactly_the_first(factor: float, dtype: torch.dtype) -> None:
    """To the bit: what remains of the others is the rounding of their own entries."""
    g = torch.randn(1000).to(dtype)
    components, _ = orthogonalize(TaskGradients.stack([[g], [g * factor], [g]]))
    update = weighted_sum(components, torch.ones(3))[0]
    assert update is not None
    assert torch.equal(update, g)


def test_a_zero_row_projects_to_nothing_and_takes_nothing() -> None:
    a, b = torch.randn(2, 50)
    rows = TaskGradients.stack([[torch.zeros(50)], [a], [torch.zeros(50)], [b]])
    with_zeros = orthogonalize(rows).components.tensors()
    without = orthogonalize(TaskGradients.stack([[a], [b]])).components.tensors()
    for found, expected in [(0, None), (1, 0), (2, None), (3, 1)]:
        tensor = with_zeros[found][0]
        assert tensor is not None
        want = torch.zeros(50) if expected is None else without[expected][0]
        torch.testing.assert_close(tensor, want, rtol=0, atol=0)


def test_a_row_that_shares_nothing_is_untouched() -> None:
    a, b, c = torch.randn(3, 20)
    update = weighted_sum(
        orthogonalize(TaskGradients.stack([[a, None], [b, None], [None, c]])).components,
        torch.ones(3),
    )
    assert update[1] is not None
    assert torch.equal(update[1], c)


@pytest.mark.parametrize("scale", SCALES)
def test_scaling_a_task_scales_its_component_alone(scale: float) -> None:
    rows = torch.randn(3, 40)
    before = orthogonalize(TaskGradients.stack([[row] for row in rows])).components.tensors()
    rows[1] *= scale
    after = orthogonalize(TaskGradients.stack([[row] for row in rows])).components.tensors()
    for i, factor in enumerate([1.0, scale, 1.0]):
        one, other = before[i][0], after[i][0]
        assert one is not None
        assert other is not None
        assert relative(other, factor * one.double()) < 1e-6


def test_a_square_that_float32_cannot_hold_does_no_harm() -> None:
    rows = torch.randn(3, 40) * torch.tensor([[1e30], [1e-30], [1e-38]])
    _, kept = reference.osgd(list(rows.double()))
    for u, (v,) in zip(
        kept,
        orthogonalize(TaskGradients.stack([[r] for r in rows])).components.tensors(),
        strict=True,
    ):
        assert v is not None
        assert relative(v, u) < 1e-5


@pytest.mark.parametrize("scale", [*SCALES, 0.0])
def test_normalized_rows_have_norm_root_d_times_c(scale: float) -> None:
    grads: list[list[Tensor | None]] = [
        [scale * torch.randn(9), None],
        [torch.randn(9), torch.randn(16)],
    ]
    rows = normalize(TaskGradients.stack(grads), C=0.5)
    norms = gram_matrix(rows).diagonal().sqrt()
    want = torch.tensor([1.5 if scale else 0.0, 2.5], dtype=torch.float64)
    torch.testing.assert_close(norms, want)
    first = rows.tensors()[0][0]
    assert first is not None
    assert torch.isfinite(first).all()


def test_dots_run_over_common_entries_only() -> None:
    a, b, c = torch.randn(3, 6)
    gram = gram_matrix(TaskGradients.stack([[a, None, b], [None, c, a], [c, None, None]]))
    A, B, C = (t.double() for t in (a, b, c))
    zero = torch.zeros((), dtype=torch.float64)
    want = [[A @ A + B @ B, B @ A, A @ C], [B @ A, C @ C + A @ A, zero], [A @ C, zero, C @ C]]
    torch.testing.assert_close(gram, torch.stack([torch.stack(row) for row in want]))


def test_weighted_sum_rounds_once() -> None:
    rows = torch.randn(5, 30_000)
    weights = torch.tensor([1e3, -1e3, 0.1, 7.0, 1.0], dtype=torch.float64)
    found = weighted_sum(TaskGradients.stack([[row] for row in rows]), weights)[0]
    assert found is not None
    exact = weights @ rows.double()
    assert ((found.double() - exact).abs() <= 6e-8 * exact.abs() + 1e-12).all()


@pytest.mark.parametrize("priority", [None, [2, 0, 1]])
def test_the_second_round_changes_nothing_where_the_first_is_exact(
    priority: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU always takes the second round, so as not to wait for a number."""
    grads = random_grads(0, 3, SHAPES, 0.7)
    one = orthogonalize(TaskGradients.stack(grads), priority)
    monkeypatch.setattr("anynest.multitask.methods.rules._well_conditioned", lambda *_: False)
    two = orthogonalize(TaskGradients.stack(grads), priority)
    torch.testing.assert_close(one.coefficients, two.coefficients)
    for a, b in zip(one.components.tensors(), two.components.tensors(), strict=True):
        torch.testing.assert_close(a, b)


def test_no_number_is_read_back_while_combining(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where each such read would stall the step."""

    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert "_local_scalar_dense" not in str(func), "a value was read back"
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr("anynest.multitask.methods.rules._well_conditioned", lambda *_: False)
    grads = random_grads(1, 3, SHAPES, 0.7)
    for method in list_methods():
        options = {"C": "calibrated"} if "norm" in method else {}
        combiner = make_combiner(method, **options)
        rows = TaskGradients.stack(grads, tensorwise=combiner.tensorwise)
        with NoReading():
            combiner.rule(rows)
            combiner.rule(rows)


def test_empty_tensors_and_rows_without_any_entry_are_fine() -> None:
    rows = TaskGradients.stack([[torch.ones(0), None], [torch.ones(0), None], [None, None]])
    components, L = orthogonalize(rows)
    assert torch.equal(L, torch.eye(3, dtype=torch.float64))
    update = weighted_sum(components, torch.ones(3))
    assert update[0] is not None
    assert update[0].shape == (0,)
    assert update[1] is None


def test_participants_share_by_their_importance() -> None:
    u, v = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    losses = [u.sum(), 5 * u.sum() + v.sum()]
    stats = WeightedSGD([3.0, 1.0], "participants").backward(losses, [u, v])
    assert u.grad is not None
    assert v.grad is not None
    assert (u.grad.item(), v.grad.item()) == (2.0, 1.0)  # (3 * 1 + 1 * 5) / 4, and 1 alone
    assert stats.skipped == ()
    rows = TaskGradients.stack(
        [[torch.tensor([1.0]), None], [torch.tensor([5.0]), torch.tensor([1.0])]]
    )
    norm = update_norm(rows, torch.tensor([3.0, 1.0]), importances=[3.0, 1.0])
    assert norm.item() == pytest.approx(5**0.5)
