"""The walk of autograd's graph: what each pass frees, what is kept, what is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from anynest.multitask import OSGD, make_combiner, task_gradients
from anynest.multitask.gradients.backward import inspect_graphs

PER_LOSS = pytest.mark.parametrize("method", ["osgd", "normsgd", "sgd-participants"])


class Decoders(nn.Module):
    """A trunk and four decoders; knows the bytes of the activations that are alive."""

    def __init__(self, separate: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.separate = separate
        self.trunk = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
            for _ in range(4)
        )
        self.made: dict[nn.Module, list[tuple[StorageWeakRef, int]]] = {}
        for root in (self.trunk, *self.decoders):
            self.made[root] = []
            for layer in root:
                layer.register_forward_hook(self.remember(root))

    def remember(self, root: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.made[root].append((StorageWeakRef(output.untyped_storage()), output.nbytes))

        return hook

    def alive(self) -> list[int]:
        """The bytes of the trunk's activations, and of each decoder's."""
        return [sum(size for ref, size in made if not ref.expired()) for made in self.made.values()]

    def losses(self, size: int = 16) -> list[Tensor]:
        x = torch.randn(size, 8)
        shared = self.trunk(x)
        return [
            decoder(self.trunk(x) if self.separate else shared).square().mean()
            for decoder in self.decoders
        ]


@PER_LOSS
@pytest.mark.parametrize("separate", [False, True])
def test_a_pass_frees_what_no_later_loss_reads(method: str, separate: bool) -> None:
    """At the beginning of pass i the decoders before it hold nothing; in the end nothing does."""
    network = Decoders(separate)
    losses = network.losses()
    full = network.alive()
    assert all(full)
    seen: list[list[int]] = []
    for loss in losses:
        loss.register_hook(lambda _: seen.append(network.alive()))
    make_combiner(method).backward(losses, network.parameters())
    assert [alive[1:] for alive in seen] == [
        [0] * done + full[1 + done :] for done in range(len(losses))
    ]
    trunks = [alive[0] for alive in seen]
    assert trunks == sorted(trunks, reverse=True) if separate else trunks == [full[0]] * 4
    assert network.alive() == [0] * 5
    for loss in losses:
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_a_graph_of_its_own_is_freed_while_its_pass_runs() -> None:
    """As in any backward pass, so that the peak is no higher."""
    network = Decoders(separate=True)
    seen: list[list[int]] = []

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(lambda _: seen.append(network.alive()))

    network.trunk.register_forward_hook(watch)
    OSGD().backward(network.losses(), network.parameters())
    assert len(seen) == 4
    for number, alive in enumerate(seen, 1):  # as pass `number` comes to its trunk
        assert not any(alive[1 : number + 1])
        assert all(alive[number + 1 :])


def test_what_is_held_afterwards_is_what_a_plain_pass_holds() -> None:
    """With the losses and outputs still referenced, also over micro-batches."""
    network = Decoders()
    combiner = OSGD()
    held = []
    for _ in range(2):
        held.append(network.losses())
        combiner.accumulate(held[-1], network.parameters())
        assert network.alive() == [0] * 5
    combiner.combine()
    held.append(network.losses())
    torch.stack(held[-1]).sum().backward()
    assert network.alive() == [0] * 5


def test_what_is_freed_changes_no_gradient() -> None:
    network = Decoders()
    parameters = list(network.parameters())
    losses = network.losses()
    kept = task_gradients(losses, parameters, retain_graph=True).tensors()
    assert all(network.alive())
    again = task_gradients(losses, parameters).tensors()
    for one, other in zip(kept, again, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert torch.equal(a, b)


def test_a_skipped_loss_frees_nothing_of_the_others_early() -> None:
    network = Decoders()
    losses = network.losses()
    losses[3] = losses[3] * float("nan")
    stats = OSGD(on_nonfinite="skip").backward(losses, network.parameters())
    assert stats.skipped == (3,)
    assert network.alive()[1:4] == [0] * 3


def test_nodes_that_no_pass_executes_keep_what_they_saved() -> None:
    """Another loss may be computed from them, as under ``loss.backward(inputs=...)``."""
    w, v = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
    shared, other = w.exp(), (v * v).exp()
    OSGD().backward([(shared * other).sum(), shared.sum()], [w])
    other.sum().backward()  # leads to v alone
    assert v.grad is not None


def test_saved_tensors_with_hooks_of_their_own_are_left_to_them() -> None:
    a, b = Decoders(), Decoders()
    torch.manual_seed(1)
    with save_on_cpu():
        losses = a.losses()
    OSGD().backward(losses, a.parameters())
    torch.manual_seed(1)
    OSGD().backward(b.losses(), b.parameters())
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_each_graph_says_what_is_its_own() -> None:
    w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    shared = w.exp()
    losses = [shared.sum(), (shared * v).sum(), v.sum(), v.sum()]
    graphs = inspect_graphs(losses, [w, v])
    assert [graph.shared for graph in graphs] == [True, False, False, False]
    assert [len(graph.own) for graph in graphs] == [1, 3, 1, 1]  # leaves are none of it
    same = inspect_graphs([losses[1], losses[1]], [w])
    assert [graph.shared for graph in same] == [True, False]
    assert len(same[0].own) == 0


class Normed(nn.Module):
    """A batch norm within a checkpoint."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
        self.reentrant = reentrant

    def losses(self) -> list[Tensor]:
        h = self.first(torch.ones(6, 4).cumsum(0))
        inner: Callable[[Tensor], Tensor] = lambda t: self.body(t).relu()  # noqa: E731
        plain = self.reentrant is None
        h = inner(h) if plain else checkpoint(inner, h, use_reentrant=self.reentrant)
        return [head(h).square().mean() for head in self.heads]


@pytest.mark.parametrize("method", ["osgd", "sgd-mean"])
def test_reentrant_checkpointing_that_appears_after_steps_is_refused(method: str) -> None:
    """It would silently leave what is inside untrained."""
    network = Normed(reentrant=None)
    combiner = make_combiner(method)
    for reentrant in (None, False):
        network.reentrant = reentrant
        combiner.backward(network.losses(), network.parameters())
    network.zero_grad()
    network.reentrant = True
    with pytest.raises(ValueError, match="must not be reentrant, found a reentrant one") as caught:
        combiner.backward(network.losses(), network.parameters())
    assert "\n" not in str(caught.value)
    assert all(p.grad is None for p in network.parameters())


def test_checkpointed_segments_run_once_more_for_each_loss() -> None:
    """As the documentation says: S + 1 times, the statistics of a batch norm moving as often."""
    for method, runs in (("osgd", 4), ("sgd-sum", 2)):
        plain, network = Normed(None), Normed(False)
        norm = network.body[1]
        make_combiner(method).backward(network.losses(), network.parameters())
        make_combiner(method).backward(plain.losses(), plain.parameters())
        assert norm.num_batches_tracked == runs
        for p, q in zip(network.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
