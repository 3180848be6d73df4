"""What the torch backend is made of: folding, the order of tasks, sums, and where pixels lie."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import CASES, Case
from torch import nn

from anynest.engines.fold import folded
from anynest.engines.gemm import supports
from anynest.engines.grid import Grid, cut
from anynest.engines.schedule import schedule
from anynest.engines.session import open_session, stages
from anynest.engines.sums import plan_reads
from anynest.engines.torch_engine import TorchSession
from anynest.nets import AnytimeNetwork, create_model
from anynest.nets.nested.plan import IMAGE

every = pytest.mark.parametrize("case", CASES, ids=str)


def test_a_folded_convolution_is_the_convolution_and_its_norm() -> None:
    case = next(case for case in CASES if case.name == "width_nested_resnet14")
    network = case.network()
    network.get_submodule("stem.stage1.norm1").affine = False
    for name in ("weight", "bias"):
        setattr(network.get_submodule("stem.stage1.norm1"), name, None)
    stem = network.get_submodule("stem.stage1")
    stem.conv1.bias = nn.Parameter(torch.randn(4, dtype=torch.float64))
    weights = folded(network.train())  # the mode does not matter
    network.eval()
    assert sum(map(len, weights.values())) == sum(
        isinstance(m, nn.Conv2d) for m in network.modules()
    )
    for (layer, birth), units in weights.items():
        stripe = network.get_submodule(f"{layer}.stage{birth}")
        for number, (weight, bias) in enumerate(units, 1):
            conv, norm = stripe.conv(number), stripe.norm(number)
            x = torch.randn(2, conv.in_channels, 5, 5, dtype=torch.float64)
            mine = nn.functional.conv2d(x, weight, bias, conv.stride, conv.padding)
            torch.testing.assert_close(mine, norm(conv(x)), rtol=1e-12, atol=1e-12)
            assert weight.data_ptr() != conv.weight.data_ptr()


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_each_norm_has_its_own_epsilon(backend: str) -> None:
    torch.manual_seed(0)
    network = create_model("width_nested_resnet10").eval()
    x = torch.randn(2, 3, 8, 8)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        before = network(x)
        for norm in norms[::2]:
            norm.eps = 0.1
        wanted = network(x)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(before, wanted, strict=True))
    session = open_session(network, backend=backend, threads=1)
    for (_, logits), theirs in zip(stages(session.begin(x)), wanted, strict=True):
        torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-5)
    session.close()


def test_norms_that_cannot_be_folded() -> None:
    network = create_model("width_nested_resnet10")
    stripe = network.get_submodule("group1.layer1.stage2")
    stripe.norm2 = nn.Identity()
    weight, _ = folded(network)["group1.layer1", 2][1]
    torch.testing.assert_close(weight, stripe.conv(2).weight.detach().double())
    for norm in (nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4)):
        stripe.norm2 = norm
        with pytest.raises(ValueError, match=r"group1\.layer1\.stage2\.norm2 must be a batch norm"):
            TorchSession(network)


@every
def test_every_node_is_scheduled_once_in_time_and_after_what_it_reads(case: Case) -> None:
    plan = case.build().plan
    births = {layer.name: [node.birth for node in layer.nodes] for layer in plan.layers}
    outputs = tuple(exit_.stage for exit_ in plan.exits)
    tasks = schedule(plan, outputs)
    done: set[tuple[str, int]] = set()
    for task in tasks:
        if task.node is not None:
            assert task.layer is not None
            assert task.stage == task.node.birth
            reads, upto = [*task.node.reads], task.node.birth
            if task.node.residual not in (None, "input"):
                reads.append(task.node.residual or "")
            wanted = {(n, b) for n in reads if n != IMAGE for b in births[n] if b <= upto}
            wanted |= {(task.layer.name, b) for b in births[task.layer.name] if b < upto}
            assert wanted <= done
            assert (task.layer.name, upto) not in done
            done.add((task.layer.name, upto))
        else:
            assert task.exit is not None
            assert {(n, b) for n in task.exit.reads for b in births[n] if b <= task.stage} <= done
            assert task.last
    assert done == {(name, birth) for name, found in births.items() for birth in found}
    assert [task.stage for task in tasks if task.last] == list(range(1, len(outputs) + 1))


@every
def test_no_channel_of_a_sum_is_added_up_twice(case: Case) -> None:
    plan = case.build().plan
    tasks = schedule(plan, tuple(exit_.stage for exit_ in plan.exits))
    known: dict[tuple[str, ...], int] = {}
    kept: set[tuple[str, ...]] = set()
    reads = plan_reads(tasks)
    for number, (task, read) in enumerate(zip(tasks, reads, strict=True)):
        node = task.node or task.exit
        assert node is not None
        assert read.reads == node.reads
        if len(read.reads) == 1:
            assert read.start == read.channels
            continue
        assert read.start == known.get(read.reads, 0)
        if read.start:
            assert read.reads in kept
        if read.start < read.channels:
            assert set(read.base) < set(read.reads)
            assert sorted((*read.base, *read.added)) == sorted(read.reads)
            if read.base:
                assert read.base in kept
                assert known[read.base] >= read.channels
        known[read.reads] = read.channels
        later = {names for other in reads[number + 1 :] for names in (other.reads, other.base)}
        if read.kept:
            kept.add(read.reads)
            assert read.start or read.reads in later, "kept for nothing"


def test_deeper_sums_start_from_earlier_ones() -> None:
    plan = create_model("depth_nested_sparse_resnet98").plan
    tasks = schedule(plan, (1, 2, 3, 4))
    reads = dict(zip(tasks, plan_reads(tasks), strict=True))
    for task, read in reads.items():
        if task.layer is not None and "transition" in task.layer.name and task.stage > 1:
            assert len(read.added) == 1, "one layer more than the transition of the stage before"


def test_pixels_and_padding_share_a_row() -> None:
    grid = Grid(batch=3, height=4, width=5, pad=2)
    rows = torch.zeros(2, grid.length)
    x = torch.randn(3, 2, 4, 5)
    grid.pixels(rows, 3).copy_(x)
    assert torch.equal(grid.pixels(rows, 2), x[:2])
    assert grid.lead % 16 == 0
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            moved = nn.functional.pad(x, (2, 2, 2, 2))[:, :, 2 + dy : 6 + dy, 2 + dx : 7 + dx]
            shifted = rows.roll(-(dy * grid.pitch + dx), 1)
            assert torch.equal(grid.pixels(shifted, 3), moved)


@pytest.mark.parametrize("columns", [1, 30, 50, 100, 10**6])
def test_tiles_cover_every_pixel_once(columns: int) -> None:
    grid = Grid(batch=5, height=7, width=4)
    for images in (1, 2, 5):
        counts = torch.zeros(1, grid.length)
        gaps = torch.zeros(1, grid.length)
        shape = cut(grid, columns)
        for tile in shape.tiles(images):
            tile.of(counts).add_(1)
            assert tile.columns <= shape.columns
            if tile.gaps(gaps) is not None:
                tile.gaps(gaps).add_(1)
        assert (grid.pixels(counts, images) == 1).all()
        assert counts.max() == 1
        assert grid.pixels(counts, 5)[images:].sum() == 0
        assert grid.pixels(gaps, 5).sum() == 0
        padding = counts.clone()
        grid.pixels(padding, images).zero_()
        between = grid.images(padding, images)[:, :, grid.height * grid.pitch - 1 :]
        assert between.sum() == gaps.sum(), "what is computed between two images is a gap"


def test_a_plan_that_products_do_not_suit() -> None:
    network = create_model("depth_nested_sparse_resnet14").eval()
    assert supports(network.plan)
    odd = replace(network.plan, relu_reads=False)  # reads that nobody rectifies
    assert not supports(odd)
    x = torch.randn(2, 3, 8, 8)
    network.plan = odd
    assert TorchSession(network).kernels == "plain"
    with pytest.raises(ValueError, match="kernels='gemm' needs the CPU"):
        TorchSession(network, kernels="gemm")
    evaluation = TorchSession(network).begin(x)
    while evaluation.stage < 1:
        logits = evaluation.step()
    with torch.no_grad():
        torch.testing.assert_close(logits, next(network.stages(x))[1], rtol=1e-4, atol=1e-5)


def test_every_registered_network_is_suited() -> None:
    for case in CASES:
        network: AnytimeNetwork = case.build()
        assert supports(network.plan), case
