"""The torch backend gives every network's logits: each registered model, random growths, any batch."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from torch import Tensor

from anynest.engines import copies
from anynest.engines.session import stages
from anynest.engines.torch_engine import TorchSession
from anynest.nets import AnytimeNetwork, create_model

every = pytest.mark.parametrize("case", CASES, ids=str)
SIZES = {"one image": (1, 8, 8), "oblong": (2, 5, 11), "a batch": (5, 9, 7), "pixels": (3, 1, 2)}
# where each way of computing is forced on every layer that admits it
TILINGS = {
    "a line a product": {"WHOLE_BYTES": 0},
    "a kernel a product": {"WHOLE_BYTES": 1 << 40},
    "small tiles": {"TILE_BYTES": 1, "MIN_COLUMNS": 20},
    "small tiles, a line a product": {"TILE_BYTES": 1, "MIN_COLUMNS": 20, "WHOLE_BYTES": 0},
    "several images a tile": {"TILE_BYTES": 1 << 30},
}


@torch.no_grad()
def reference(network: AnytimeNetwork, x: Tensor) -> list[Tensor]:
    return [logits for _, logits in network.stages(x.double())]


def answers(session: TorchSession, x: Tensor) -> list[Tensor]:
    evaluation = session.begin(x)
    found = list(stages(evaluation))
    evaluation.close()
    assert [stage for stage, _ in found] == list(range(1, session.num_stages + 1))
    return [logits for _, logits in found]


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(
        batch, 3, height, width, generator=torch.Generator().manual_seed(batch * height + width)
    )


def agree(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == theirs.shape
        error = (mine - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-4, f"relative error {error:.1e}"


@every
@pytest.mark.parametrize("kernels", ["gemm", "plain"])
def test_all_stages(case: Case, kernels: str) -> None:
    network, x = case.network(), case.images().float()
    session = TorchSession(network, kernels=kernels)
    assert session.kernels == kernels
    wanted = reference(network, x)
    agree(answers(session, x), wanted)
    agree(answers(session, x.flip(0)), [row.flip(0) for row in wanted])  # in the same memory


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_sizes(case: Case) -> None:
    network = case.network()
    session = TorchSession(network)
    assert session.kernels == "gemm"
    for shape in SIZES.values():
        x = images(*shape)
        agree(answers(session, x), reference(network, x))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("case", CASES[1::6], ids=str)
def test_tiles(case: Case, tiling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TILINGS[tiling].items():
        monkeypatch.setattr(copies, name, value)
    network = case.network()
    session = TorchSession(network)
    for shape in ((1, 16, 16), (5, 7, 6)):
        x = images(*shape)
        agree(answers(session, x), reference(network, x))


@pytest.mark.parametrize("case", CASES[::5], ids=str)
@pytest.mark.parametrize("kernels", ["gemm", "plain"])
def test_parts_and_plain_networks(case: Case, kernels: str) -> None:
    """A stage taken out; the whole in training mode; the plain network of the last stage's size."""
    network, x = case.network(), case.images().float()
    wanted = reference(network, x)
    for stage in range(1, network.num_stages + 1):
        part = TorchSession(network.subnetwork(stage), kernels=kernels)
        agree(answers(part, x), [wanted[stage - 1]])
    agree(answers(TorchSession(network.train(), kernels=kernels), x), wanted)
    plain = AnytimeNetwork(network.architecture.plain(network.num_stages)).double().eval()
    agree(answers(TorchSession(plain, kernels=kernels), x), reference(plain, x))


@pytest.mark.parametrize("kernels", ["gemm", "plain"])
def test_samples_leave_between_stages(kernels: str) -> None:
    averaged = Case("average", lambda: create_model("ensemble_resnet10", average=True), 8)
    for case in [*CASES[1::5], averaged]:
        network = case.network()
        x = images(6, case.image_size, case.image_size)
        session = TorchSession(network, kernels=kernels)
        wanted = reference(network, x)
        for _ in range(2):  # the second time in memory that the first has left behind
            evaluation = session.begin(x)
            rows = torch.arange(6)
            shrink = [torch.tensor([5, 0, 3, 1, 4]), torch.tensor([4, 1, 2]), torch.tensor([1])]
            for stage, logits in stages(evaluation):
                agree([logits], [wanted[stage - 1][rows]])
                if stage < network.num_stages and shrink:
                    chosen = shrink.pop(0)
                    evaluation.keep(chosen)
                    rows = rows[chosen]
            evaluation.close()
        agree(answers(session, x), wanted)


def test_samples_may_leave_before_the_first_stage() -> None:
    network = create_model("alternating_nested_sparse_resnet14").eval()
    x, rows = images(4, 8, 8), torch.tensor([2, 0])
    evaluation = TorchSession(network).begin(x)
    evaluation.keep(rows)
    agree([logits for _, logits in stages(evaluation)], reference(network.double(), x[rows]))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e38])
def test_an_image_that_is_no_number_spoils_no_other(
    broken: float, tiling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TILINGS[tiling].items():
        monkeypatch.setattr(copies, name, value)
    for name in ("width_nested_resnet10", "simultaneous_nested_sparse_resnet26"):
        network = create_model(name).eval()
        session = TorchSession(network)
        x = images(5, 8, 8)
        wanted = answers(session, x)
        spoiled = x.clone()
        spoiled[2] = broken
        others = [0, 1, 3, 4]
        found = answers(session, spoiled)
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine[others], theirs[others], rtol=0, atol=0)
            assert not torch.allclose(mine[2], theirs[2])
        for mine, theirs in zip(answers(session, x), wanted, strict=True):
            assert torch.equal(mine, theirs), "the memory remembers"
        for start in (1, 2):  # fewer images in the same memory: other tiles
            evaluation = session.begin(spoiled)
            evaluation.keep(torch.arange(5))
            list(stages(evaluation))
            evaluation.close()
            evaluation = session.begin(x)
            evaluation.keep(torch.arange(start, 5))
            for (_, mine), theirs in zip(stages(evaluation), wanted, strict=True):
                torch.testing.assert_close(mine, theirs[start:], rtol=1e-4, atol=1e-5)
            evaluation.close()
