"""Export a network with exits, and cut it into segments."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from .cut import Cutter
from .functional import functional

_ATTRIBUTES = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)

_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.export._trace")
# sizes and Python numbers made of a tensor's values
_VALUES = {"aten.item.default", "aten._local_scalar_dense.default", "aten.nonzero.default"}


class CannotExport(Exception):
    """torch.export does not take the network, or the graph cannot stand for it."""


class _Whole(nn.Module):
    """The body and its heads under their own names, for torch.export."""

    def __init__(self, body: nn.Module, exits: nn.Module, run: Callable[..., list[Tensor]]) -> None:
        super().__init__()
        self.body = body
        self.exits = exits
        self._run = run

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._run(*inputs))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own report of a failed export: a warning and graphs on stderr."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export(
    body: nn.Module,
    exits: nn.Module,
    run: Callable[..., list[Tensor]],
    example: Sequence[Tensor],
) -> ExportedProgram:
    """Export all outputs; the batch is dynamic, and so are the other sizes where they can be.

    Raises:
        CannotExport: with the first line of torch's reason.
    """
    batch = Dim("batch")
    shapes: list[dict[int, Any]] = [
        {0: batch, **dict.fromkeys(range(1, tensor.dim()), Dim.AUTO)} for tensor in example
    ]
    whole = _Whole(body, exits, run)
    whole.train(body.training)
    try:
        with _quiet():
            return torch.export.export(
                whole, tuple(example), dynamic_shapes=(tuple(shapes),), strict=False
            )
    except Exception as error:  # torch.export raises whatever the traced code raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if "Constraints violated (batch)" in reason:
            reason = "forward makes the batch size a constant, as len(x) does and x.shape[0] not"
        raise CannotExport(reason) from error


def cutter_of(program: ExportedProgram, tensors: dict[str, Tensor]) -> Cutter:
    """Prepare the cut of a program.

    Args:
        program: as exported; it is changed.
        tensors: the network's own parameters and buffers, which the segments share.

    Raises:
        CannotExport: the graph changes buffers or inputs, or holds what no segment can.
    """
    with _quiet():
        program = functional(program)
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        raise CannotExport(f"forward writes to {changed[0]} in eval mode")
    for node in program.graph.nodes:
        if str(node.target) in _VALUES:
            raise CannotExport("a size or a branch depends on the input's values")
    inputs: list[fx.Node] = []
    attributes: dict[fx.Node, tuple[str, Tensor]] = {}
    nodes = {node.name: node for node in program.graph.nodes}
    for spec in signature.input_specs:
        node = nodes[getattr(spec.arg, "name", "")]
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(node)
        elif spec.kind in _ATTRIBUTES and spec.target is not None:
            name = spec.target.removeprefix("body.")
            tensor = tensors.get(name)
            if tensor is None:
                tensor = program.constants[spec.target]
            attributes[node] = (name, tensor)
        else:
            raise CannotExport(f"the graph reads {spec.kind.name.lower()} {spec.target}")
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    results = output.args[0]
    if any(not isinstance(node, fx.Node) for node in results):
        raise CannotExport("an output is a constant")
    return Cutter(inputs, attributes, results)
