"""In-place operations of an exported graph made functional, so that its values may be carried."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

_aten = torch.ops.aten
# return their input in eval mode, which their schemas do not say
_PASSING = {
    *(_aten.dropout, _aten.feature_dropout, _aten.alpha_dropout, _aten.feature_alpha_dropout),
    *(_aten.type_as, _aten.broadcast_tensors, _aten.meshgrid, _aten.atleast_1d, _aten.atleast_2d),
    _aten.atleast_3d,
}


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without in-place operations.

    An in-place operation on a result that nothing aliases is replaced by its functional twin, and
    later readers read that; ``meta["in place"]`` keeps the operation. Where there are others,
    torch's own functionalization does it, which takes as long again as the export.
    """
    if not _replace(program.graph):
        program = program.run_decompositions({})
    for node in list(program.graph.nodes):  # all values are final now: no copy is needed
        overwritten = any("in place" in user.meta and user.args[0] is node for user in node.users)
        if node.target == _aten.clone.default and not node.kwargs and not overwritten:
            node.replace_all_uses_with(node.args[0])
    return program


def _replace(graph: fx.Graph) -> bool:
    """Replace in-place operations; False, and an unchanged graph, if that is not safe for all."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    mutating = [node for node in graph.nodes if _is_mutable(node)]
    # node -> its functional operation
    plan: dict[fx.Node, Any] = {}
    for node in mutating:
        twin = _twin(node)
        base = node.args[0] if node.args else None
        if twin is None or not isinstance(base, fx.Node) or base.op != "call_function":
            return False
        if base not in plan and _may_alias(base):
            return False
        earlier = [user for user in base.users if order[user] < order[node]]
        if any(_may_alias(user) or user.op == "output" for user in earlier):
            return False
        if not _keeps_type(node, base):
            return False
        plan[node] = twin
    for node, twin in plan.items():
        base = node.args[0]
        assert isinstance(base, fx.Node)
        later = [user for user in base.users if order[user] > order[node]]
        node.meta["in place"] = node.target
        node.target = twin
        for user in later:
            user.replace_input_with(base, node)
    return True


def _is_mutable(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _twin(node: fx.Node) -> Any:
    """The functional operation with the same arguments; None if there is none."""
    target: Any = node.target
    mutated = [a.name for a in target._schema.arguments if a.alias_info and a.alias_info.is_write]
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(_aten, name.removesuffix("_"), None)
    if mutated != ["self"] or not name.endswith("_") or packet is None:
        return None
    return getattr(packet, target._overloadname, None)


def _keeps_type(node: fx.Node, base: fx.Node) -> bool:
    """Whether the functional operation gives the type of ``base``, as the in-place one does."""
    values = [base.meta.get("val"), *(read.meta.get("val") for read in node.all_input_nodes)]
    types = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return len(types) < 2


def _may_alias(node: fx.Node) -> bool:
    """Whether a node's result may share memory with what it reads."""
    if node.target is operator.getitem:  # one of several results
        source = node.args[0]
        return not isinstance(source, fx.Node) or _may_alias(source)
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # sizes
        return False
    if getattr(node.target, "overloadpacket", None) in _PASSING:
        return True
    return not schema.is_mutable and any(result.alias_info for result in schema.returns)
