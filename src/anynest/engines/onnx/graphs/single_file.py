"""All stages in one ONNX file: each later stage is a branch of an ``If`` in the stage before.

    image, stages -> stage 1 -> If stages > 1: stage 2 -> If stages > 2: ... -> logits, stage

The input ``stages`` (int64, a scalar) is the number of stages to run; the branches of the others
are skipped. A branch reads earlier stages' values from the enclosing graphs, so ``split`` can
recover the stages from the file.

Legend: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .cut import node_reads

STAGES, LOGITS, STAGE = "stages", "logits", "stage"
OURS = "stages."  # prefix of the nodes that connect the stages


def join(models: Sequence[Any]) -> Any:
    """One ``ModelProto`` from the stages' own.

    Its outputs are ``logits`` ``[B, K]`` of the last stage that ran, and ``stage``, its number.
    """
    import onnx

    helper = onnx.helper
    branch: Any = None  # the graph of all later stages
    given = {value.name for model in models for value in model.graph.output}
    taken = {v.name: v for m in models for v in m.graph.input if v.name not in given}
    for number in range(len(models), 0, -1):
        graph = models[number - 1].graph
        nodes = [*graph.node, *_choice(number, graph.output[0], branch)]
        outputs = [
            helper.make_tensor_value_info(_named(LOGITS, number), onnx.TensorProto.FLOAT, None),
            helper.make_tensor_value_info(_named(STAGE, number), onnx.TensorProto.INT64, []),
        ]
        outputs[0].type.CopyFrom(graph.output[0].type)
        inputs = [] if number > 1 else [*taken.values()]
        if number == 1:
            inputs.append(helper.make_tensor_value_info(STAGES, onnx.TensorProto.INT64, []))
        branch = helper.make_graph(
            nodes, f"stage{number}", inputs, outputs, list(graph.initializer)
        )
        branch.value_info.extend(graph.output[1:])  # the types of the state
    opsets = {(entry.domain, entry.version) for model in models for entry in model.opset_import}
    return helper.make_model(
        branch,
        opset_imports=[helper.make_opsetid(*entry) for entry in sorted(opsets)],
        ir_version=models[0].ir_version,
        producer_name="anynest",
    )


def _named(what: str, number: int) -> str:
    """A result's name in the graph of stage ``number``; those of stage 1 are the file's outputs."""
    return what if number == 1 else f"{what}.from{number}"


def _choice(number: int, logits: Any, branch: Any) -> list[Any]:
    """The nodes after a stage: its own logits, or those of ``branch`` if more stages are wanted."""
    import onnx

    helper = onnx.helper

    def constant(name: str) -> Any:
        value = helper.make_tensor("value", onnx.TensorProto.INT64, [], [number])
        return helper.make_node("Constant", [], [name], name=OURS + name, value=value)

    def own(answer: str, stage: str) -> list[Any]:
        copy = helper.make_node("Identity", [logits.name], [answer], name=OURS + answer)
        return [copy, constant(stage)]

    results = _named(LOGITS, number), _named(STAGE, number)
    if branch is None:
        return own(*results)
    stop = f"{LOGITS}.at{number}", f"{STAGE}.at{number}"
    stopped = helper.make_graph(
        own(*stop),
        f"stop{number}",
        [],
        [
            helper.make_tensor_value_info(stop[0], logits.type.tensor_type.elem_type, None),
            helper.make_tensor_value_info(stop[1], onnx.TensorProto.INT64, []),
        ],
    )
    more, count = f"{OURS}more{number}", f"{OURS}done{number}"
    return [
        constant(count),
        helper.make_node("Greater", [STAGES, count], [more], name=more),
        helper.make_node(
            "If",
            [more],
            list(results),
            name=f"{OURS}if{number}",
            then_branch=branch,
            else_branch=stopped,
        ),
    ]


def split(model: Any) -> list[Any]:
    """The stages' own models from a file that ``join`` made.

    Raises:
        ValueError: the file has another structure.
    """
    import onnx

    helper, floating = onnx.helper, onnx.TensorProto.FLOAT
    graphs = [model.graph]
    while True:
        ends = [n for n in graphs[-1].node if n.op_type == "If" and n.name.startswith(OURS)]
        if not ends:
            break
        branches = [a.g for a in ends[0].attribute if a.name == "then_branch"]
        if len(ends) != 1 or len(branches) != 1:
            raise ValueError("each stage must be followed by at most one, found several or none")
        graphs += branches
    types = {value.name: value for graph in graphs for value in graph.value_info}
    origin: dict[str, int] = {}
    nodes = [[n for n in graph.node if not n.name.startswith(OURS)] for graph in graphs]
    for index, own in enumerate(nodes):
        origin.update((name, index) for node in own for name in node.output)
    reads = [
        list(dict.fromkeys(i for n in own for i in node_reads(n) if origin.get(i, index) < index))
        for index, own in enumerate(nodes)
    ]
    result = []
    for index, (graph, own) in enumerate(zip(graphs, nodes, strict=True)):
        later = dict.fromkeys(name for names in reads[index + 1 :] for name in names)
        gives = [f"logits{index + 1}", *(name for name in later if origin[name] == index)]
        used = {name for node in own for name in node_reads(node)}
        given = [value for value in model.graph.input if value.name in used]
        described = [
            [types.get(n) or helper.make_tensor_value_info(n, floating, None) for n in names]
            for names in (reads[index], gives)
        ]
        described[1][0].type.CopyFrom(graph.output[0].type)
        part = helper.make_graph(
            own, graph.name, [*given, *described[0]], described[1], list(graph.initializer)
        )
        result.append(
            helper.make_model(
                part, opset_imports=list(model.opset_import), ir_version=model.ir_version
            )
        )
    return result
