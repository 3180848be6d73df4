"""ONNX graphs: every stage has the network's logits for any batch, and computes nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from cases import CASES, Case

from anynest.engines.folding import FoldedNetwork
from anynest.engines.onnx.export.verify import run_stages
from anynest.engines.onnx.graphs.single_file import join, split
from anynest.engines.onnx.graphs.standard import build_standard, standard_models
from anynest.engines.onnx.manifest import image_input
from anynest.engines.onnx.nchwc.block_size import block_size
from anynest.engines.onnx.nchwc.channel_alignment import align_channels
from anynest.engines.onnx.nchwc.packing_choice import choose_packing
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.session import stages
from anynest.nets import create_model

# of the large networks, one of each family: the others differ in size alone
LARGE = ("width_nested_resnet42", "depth_nested_sparse_resnet98", "width_nested_resnet50")
CHOSEN = [
    case
    for case in CASES
    if case.name in LARGE or not any(size in case.name for size in ("42", "98", "50", "66"))
]
every = pytest.mark.parametrize("case", CHOSEN, ids=str)
some = pytest.mark.parametrize("case", CHOSEN[::4], ids=str)


def models_of(case: Case) -> tuple[FoldedNetwork, list[Any]]:
    network = FoldedNetwork.of(case.network())
    models, _ = standard_models(network, build_standard(network), (case.image_size,) * 2)
    return network, models


@torch.no_grad()
def expected(case: Case, images: torch.Tensor) -> list[torch.Tensor]:
    return [logits for _, logits in case.network().stages(images)]


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 * max(scale, 1e-3))


@every
def test_logits_are_the_networks(case: Case) -> None:
    """In both layouts, a batch and a single image; without blocks on this processor, in one."""
    images = case.images()
    wanted = expected(case, images)
    folded = FoldedNetwork.of(case.network())
    for layout in ("standard", "blocked") if block_size() > 1 else ("standard",):
        session = OnnxSession(folded, layout=layout)
        for rows in ([0, 1, 2], [1]):
            found = list(stages(session.begin(images[rows].float())))
            assert [stage for stage, _ in found] == list(range(1, len(wanted) + 1))
            for (_, ours), theirs in zip(found, wanted, strict=True):
                close(ours, theirs[rows])


@some
def test_every_convolution_is_in_one_stage_only(case: Case) -> None:
    """N2, N4: a stage's graph has its own nodes' convolutions and no others, at their own cost."""
    network, models = models_of(case)
    outputs = iter(case.network().cost(case.image_size))
    for model, cost in zip(models, outputs, strict=True):
        assert multiply_adds(model) == cost.own_multiply_adds
    names = Counter(t.name for model in models for t in model.graph.initializer)
    assert set(names.values()) == {1}
    units = sum(len(node.units) for layer in network.plan.layers for node in layer.nodes)
    assert sum(".conv" in name for name in names) == 2 * units
    for model in models:
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def multiply_adds(model: Any) -> int:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    weights = {t.name: list(t.dims) for t in model.graph.initializer}
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            pixels = shapes[node.output[0]][2:]
            total += int(np.prod(weights[node.input[1]])) * int(np.prod(pixels))
    return total


def test_partial_sums_are_reused() -> None:
    """A later stage's transition adds one layer to the sum of the earlier one's."""
    graphs = build_standard(FoldedNetwork.of(create_model("depth_nested_sparse_resnet98")))
    sums = {op.name: op.inputs for graph in graphs for op in graph.operations if op.kind == "Sum"}
    first = "group2.transition1.stage1.input.sum"
    assert sums[first] == ("group1.layer9.stage1", "group1.layer1.stage1")
    transitions = [f"group2.transition{s}.stage{s}.input.sum" for s in (2, 3, 4)]
    for before, own in zip([first, *transitions], transitions, strict=False):
        assert len(sums[own]) == 2
        assert sums[own][0] == before


@some
def test_single_file_gives_every_stage_and_is_split_again(case: Case) -> None:
    _, models = models_of(case)
    model = join(models)
    onnx.checker.check_model(model, full_check=True)
    for ours, theirs in zip(split(model), models, strict=True):
        assert list(ours.graph.node) == list(theirs.graph.node)
        assert list(ours.graph.initializer) == list(theirs.graph.initializer)
        for kind in ("input", "output"):
            names = [{v.name for v in getattr(m.graph, kind)} for m in (ours, theirs)]
            assert names[0] == names[1]
        assert ours.graph.output[0].name == theirs.graph.output[0].name
    session = run_options(model)
    images = case.images()
    for stages_wanted, logits in enumerate(expected(case, images), 1):
        found, stage = ask(session, images, stages_wanted)
        assert stage == stages_wanted
        close(torch.from_numpy(found), logits)
    # out of range: the nearest stage
    assert ask(session, images, 0)[1] == 1
    assert ask(session, images, 99)[1] == len(models)


def test_branches_of_later_stages_are_skipped(tmp_path: Path) -> None:
    """According to ONNX Runtime's profile."""
    case = next(case for case in CASES if case.name == "width_nested_resnet10")
    _, models = models_of(case)
    own = [{node.name for node in model.graph.node if node.op_type == "Conv"} for model in models]
    for wanted in (1, 2, 3):
        session = run_options(join(models), str(tmp_path / f"run{wanted}"))
        ask(session, case.images(), wanted)
        events = json.loads(Path(session.end_profiling()).read_text())
        ran = {e["name"] for e in events if e.get("cat") == "Node"}
        for stage, names in enumerate(own, 1):
            done = {name for name in names if f"{name}_kernel_time" in ran}
            assert done == (names if stage <= wanted else set())


def run_options(model: Any, profile: str = "") -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return ort.InferenceSession(model.SerializeToString(), options)


def ask(session: Any, images: torch.Tensor, wanted: int) -> tuple[Any, int]:
    feed = {"image": images.float().numpy(), "stages": np.array(wanted)}
    logits, stage = session.run(["logits", "stage"], feed)
    return logits, int(stage)


@some
def test_aligned_nodes_replace_earlier_ones(case: Case) -> None:
    block = 4  # the cases' nodes are narrow
    network = FoldedNetwork.of(case.network())
    aligned = align_channels(network, block)
    graphs = build_standard(aligned)
    models, _ = standard_models(aligned, graphs, (case.image_size,) * 2)
    names = [graph.names for graph in graphs]
    answers = run_stages(models, names, [image_input(case.network().in_channels)])
    images = case.images()
    for ours, theirs in zip(answers(images.float().numpy()), expected(case, images), strict=True):
        close(torch.from_numpy(ours), theirs)
    # no node computes more blocks than before, so no stage costs more
    for before, after in zip(network.plan.layers, aligned.plan.layers, strict=True):
        for old, new in zip(before.nodes, after.nodes, strict=True):
            assert new.start <= old.start
            for was, unit in zip(old.units, new.units, strict=True):
                assert -(-unit.outputs // block) == -(-was.outputs // block)


def test_nodes_begin_at_whole_blocks_where_they_can() -> None:
    def starts(name: str, layer: str, block: int) -> list[int]:
        plan = align_channels(FoldedNetwork.of(create_model(name)), block).plan
        return [node.start for entry in plan.layers if entry.name == layer for node in entry.nodes]

    assert starts("width_nested_resnet42", "group1.layer3", 16) == [0, 0, 16]
    assert starts("width_nested_resnet42", "group1.layer3", 8) == [0, 8, 16]
    assert starts("even_width_resnet42", "group1.layer3", 16) == [0, 0, 16, 16]
    assert starts("width_nested_resnet42", "group2.layer3", 16) == [0, 16, 32]
    # from stage 4 on this layer reads others than before: what it has is not computed along
    assert starts("alternating_nested_sparse_resnet98", "group1.layer5", 16) == [0, 0, 8]


def test_narrow_slices_are_packed_and_wide_ones_are_not() -> None:
    def choice(name: str, block: int, width: int = 32) -> tuple[bool, dict[tuple[int, int], int]]:
        network = FoldedNetwork.of(create_model(name))
        chosen, packs = choose_packing(network, width, block)
        return chosen is not network, packs

    assert choice("width_nested_resnet42", 16) == (True, {(0, 1): 2})  # slices of 8, 8, 16 channels
    assert choice("width_nested_resnet42", 8) == (False, {})
    assert choice("depth_nested_sparse_resnet98", 16) == (False, {})
    aligned, packs = choice("even_width_resnet42", 16)
    assert (aligned, packs) == (False, {(0, birth): 2 for birth in (1, 2, 3, 4)})
    # a convolution of stride 2 may lead from fours of pixels to pairs, not to single ones
    aligned, packs = choice("alternating_nested_sparse_resnet98", 16)
    assert aligned
    assert (packs[0, 1], packs[1, 1]) == (4, 2)
    assert choice("width_nested_resnet42", 16, width=31)[1] == {}  # pairs need an even row
    assert choice("width_nested_resnet14", 16, width=64)[1] == {}  # bottlenecks and pooling
