"""What the processor's kernels want: channels in a block, and pixels side by side where channels are few."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..nets.plan import IMAGE, Plan, Unit
from . import extras

PACKS = (1, 2, 4)
WORTH = 1.05  # what packing a level must gain to be worth its masks
NARROW = 1.4  # how much longer a multiply-add takes where a convolution gives one block alone


@functools.cache
def block_size() -> int:
    """Channels that ONNX Runtime's CPU kernels compute at once, as it saves a small model; 1 for none."""
    onnx, ort = extras.onnx(), extras.onnxruntime()
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])],
        "probe",
        [helper.make_tensor_value_info("x", real, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("y", real, [1, 4, 2, 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    with TemporaryDirectory(prefix="anynest-") as folder:
        saved = Path(folder) / "probe.onnx"
        options.optimized_model_filepath = str(saved)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(str(saved)).graph
    blocked = {
        n.input[1] for n in graph.node if n.domain == "com.microsoft.nchwc" and n.op_type == "Conv"
    }
    sizes = [weight.dims[0] for weight in graph.initializer if weight.name in blocked]
    return int(sizes[0]) if sizes else 1


def choose_packs(plan: Plan, width: int, block: int) -> dict[int, int]:
    """Per level (how often the image is halved), the pixels that stand side by side; 1 is left out.

    The lanes that the 3x3 convolutions take are counted for each choice, padding included. Every
    stage counts alike: the choice is best for the mean of their work relative to that without packing.
    """
    levels = _levels(plan)
    pooled = {levels[layer.name] + 1 for layer in plan.layers if layer.pool}  # one pixel a position
    stages = sorted({node.birth for layer in plan.layers for node in layer.nodes})
    work: dict[tuple[int, int], list[float]] = {}  # level, pack -> what each stage adds
    for layer in plan.layers:
        level = levels[layer.name]
        known: list[int] = []
        for node in layer.nodes:
            last = node.units[-1]
            known.append(last.outputs)
            if last.kernel == 3 and last.stride == 1:
                for pack in PACKS:
                    added = work.setdefault((level, pack), [0.0] * len(stages))
                    added[stages.index(node.birth)] += _work(known, pack, block)
    order = sorted({level for level, _ in work})

    def cost(packs: Mapping[int, int]) -> float:
        own = [sum(work[item][s] for item in packs.items()) for s, _ in enumerate(stages)]
        without = [sum(work[level, 1][s] for level in packs) for s, _ in enumerate(stages)]
        pairs = zip(itertools.accumulate(own), itertools.accumulate(without), strict=True)
        gain = sum(ours / theirs for ours, theirs in pairs if theirs)
        return gain * WORTH ** sum(pack > 1 for pack in packs.values())

    choices = [
        dict(zip(order, c, strict=True)) for c in itertools.product(PACKS, repeat=len(order))
    ]
    allowed = [c for c in choices if all(_allowed(level, c, width, pooled) for level in order)]
    best = min(allowed, key=cost)
    return {level: pack for level, pack in best.items() if pack > 1}


def _allowed(level: int, packs: Mapping[int, int], width: int, pooled: set[int]) -> bool:
    """Whether rows are whole positions, and a convolution of stride 2 can lead to the next level."""
    row = width
    for _ in range(level):
        row = -(-row // 2)
    pack = packs[level]
    if pack == 1:
        return True
    return row % pack == 0 and 2 * packs.get(level + 1, 1) % pack == 0 and level not in pooled


def _work(slices: list[int], pack: int, block: int) -> float:
    """Lanes times lanes times taps of the newest slice's 3x3 convolution over all slices, a pixel."""

    def lanes(channels: int) -> int:
        return -(-channels * pack // block) * block

    taps = 9 if pack == 1 else 6
    outputs = lanes(slices[-1])
    slow = NARROW if outputs == block else 1.0
    return slow * outputs * sum(lanes(channels) for channels in slices) * taps / pack


def _levels(plan: Plan) -> Mapping[str, int]:
    """How often the image is halved up to each layer's result, before pooling."""
    levels = {IMAGE: 0}
    after: dict[str, int] = {IMAGE: 0}
    for layer in plan.layers:
        node = layer.nodes[0]
        halved = sum(_halves(unit) for unit in node.units)
        levels[layer.name] = after[node.reads[0]] + halved
        after[layer.name] = levels[layer.name] + int(layer.pool)
    return levels


def _halves(unit: Unit) -> int:
    return int(unit.stride == 2)
