"""on_nonfinite="ignore": a step reads nothing back from the device, as CUDA graphs demand.

Two witnesses: tensors without entries (the "meta" device), from which nothing can be read and on
which the rules take the path of a GPU; and a log of every operation of a real step on that path.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from anynest.multitask import Combiner, NonFiniteLossError, list_methods, make_combiner

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in list_methods()),
    ("normsgd", {"C": "calibrated", "calibration_steps": 2}),
    ("osgd-norm", {"C": "calibrated", "calibration_steps": 2, "priority": [2, 0, 1]}),
    ("osgd", {"refresh": 2}),
    ("osgd-mean", {"refresh": 3, "priority": [2, 0, 1]}),
    ("osgd-norm", {"refresh": 2}),
]
EACH = pytest.mark.parametrize(
    ("method", "options"), CASES, ids=[f"{m} {' '.join(map(str, o.values()))}" for m, o in CASES]
)
KERNELS = ("_local_scalar_dense", "is_nonzero", "aten.equal", "aten.nonzero", "aten.item")
CALLS = {"tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"}


def steps(combiner: Combiner, parameters: list[Any], make: Callable[[], list[Tensor]]) -> None:
    """Three steps of ``backward``, two of micro-batches."""
    for _ in range(3):
        combiner.backward(make(), parameters)
    for _ in range(2):
        for _ in range(2):
            combiner.accumulate(make(), parameters)
        combiner.combine()


class Small:
    """Three losses of which each touches a parameter of its own beside the shared one."""

    def __init__(self, device: str = "cpu") -> None:
        self.parameters = [nn.Parameter(torch.randn(5, device=device)) for _ in range(4)]

    def losses(self) -> list[Tensor]:
        shared, *own = self.parameters
        return [(shared * w).sin().sum() * (i + 1) for i, w in enumerate(own)]


@EACH
def test_nothing_is_read_from_tensors_without_entries(method: str, options: dict[str, Any]) -> None:
    small = Small("meta")
    combiner = make_combiner(method, on_nonfinite="ignore", **options)
    steps(combiner, small.parameters, small.losses)
    assert all(p.grad is not None and p.grad.is_meta for p in small.parameters)
    with pytest.raises(ValueError, match="losses must have values, found meta tensors: move"):
        make_combiner(method).backward(small.losses(), small.parameters)


class Kernels(TorchDispatchMode):
    """The names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """The names of the calls in Python; ``tolist`` of a CPU tensor runs no operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def reads(act: Callable[[], None]) -> set[str]:
    """What ``act`` did that waits for a device."""
    with Kernels() as kernels, Calls() as calls:
        act()
    assert any("aten.mm" in name or "aten.mul" in name for name in kernels.names)
    return {name for name in kernels.names if any(read in name for read in KERNELS)} | {
        name for name in calls.names if name in CALLS
    }


@EACH
def test_a_real_step_reads_nothing_back(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anynest.multitask.methods.rules._well_conditioned", lambda *_: False)
    small = Small()
    combiner = make_combiner(method, on_nonfinite="ignore", **options)
    assert reads(lambda: steps(combiner, small.parameters, small.losses)) == set()
    asking = make_combiner(method, **options)
    found = reads(lambda: steps(asking, small.parameters, small.losses))
    assert "tolist" in found  # so the log can see it


@EACH
def test_what_is_not_looked_at_is_the_same_step(
    method: str, options: dict[str, Any], three_exits: Make, digit_losses: Losses
) -> None:
    found = []
    for mode in ("ignore", "raise"):
        network = three_exits()
        parameters = list(network.parameters())
        combiner = make_combiner(method, on_nonfinite=mode, **options)
        steps(combiner, parameters, lambda network=network: digit_losses(network, 0))
        found.append([p.grad for p in parameters])
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", list_methods())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_loss_goes_into_the_gradient_where_a_scaler_finds_it(
    method: str, bad: float
) -> None:
    w = nn.Parameter(torch.ones(3))
    losses = [w.sum() * bad, (w * w).sum()]
    with pytest.raises(NonFiniteLossError):
        make_combiner(method).backward(losses, [w], retain_graph=True)
    stats = make_combiner(method, on_nonfinite="ignore").backward(losses, [w])
    assert stats.skipped == ()
    assert w.grad is not None
    assert not torch.isfinite(w.grad).all()
    stepper = torch.optim.SGD([w], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    scaler.step(stepper)
    assert torch.equal(w.detach(), torch.ones(3))
