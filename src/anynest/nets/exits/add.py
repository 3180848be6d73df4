"""Add exits to a network that knows nothing of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from .heads import Exit, has_class_token, make_head
from .inputs import Example, Inputs
from .modes import evaluating
from .network import HEADS, ExitNetwork
from .probe import activation_of, check_batch, find_points, is_written, record
from .program import close
from .taps import Taps
from .values import Read


def add_exits(
    body: nn.Module,
    example: Example,
    num_classes: int | None,
    after: Mapping[str, nn.Module | str | Exit],
    output: Read = None,
) -> ExitNetwork:
    """Give a network outputs at intermediate activations; its own output is the last.

    The body is not changed: its forward pass runs as it is, and hooks evaluate the heads.

    Args:
        body: any module, pretrained or not, whose inputs and outputs have the batch as dimension 0.
        example: an input: a tensor, a tuple of tensors, or a dict of keyword arguments. It is used
            at construction and for the export; of a batch of 1, the row is doubled.
        num_classes: K of the heads and of the body's output; None if they are not class logits.
        after: module name -> head. A name stands for the module's last call, ``"name#0"`` for its
            first. A head is a module that reads the activation, an :class:`Exit`, or

            - ``"auto"``: for ``[B, C, H, W]`` as ``"nchw"``; for ``[B, N, C]`` as ``"cls"`` if the
              body has a class token or an ``attention_mask``, else as ``"mean"``; for ``[B, C]`` a
              linear layer;
            - ``"nchw"``, ``"nhwc"``: the mean over the image, linear;
            - ``"cls"``, ``"last"``, ``"mean"``: the first token, the last one or their mean,
              LayerNorm, linear.

            Exits are numbered in the order of execution.
        output: which tensor of the body's output is the last stage's: an index, a key or field
            such as ``"logits"``, or a function of the output. None: it is a tensor or holds one.

    Returns:
        A module with S = len(after) + 1 stages; see :class:`~anynest.nets.Staged`.

    Raises:
        ValueError: a name that the body does not call, an activation or an exit at which the rows
            of the batch cannot be told apart, or stages that differ from the forward pass.

    Example:
        >>> import anynest, torch
        >>> body = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ... )
        >>> x = torch.randn(2, 4)
        >>> model = anynest.add_exits(body, x, num_classes=3, after={"1": "auto"})
        >>> [list(logits.shape) for logits in model(x)]
        [[2, 3], [2, 3]]
    """
    compiled = body
    body = getattr(body, "_orig_mod", body)  # as torch.compile returns it
    if not after:
        raise ValueError("after must name at least one module of the body, found none")
    if HEADS in body._modules or hasattr(body, HEADS):
        raise ValueError(
            f"the body must have no attribute {HEADS!r}, the prefix of the heads' names, found "
            f"{type(getattr(body, HEADS)).__name__}; rename it"
        )
    with evaluating():
        inputs = Inputs(body, example)
    exits = {name: spec if isinstance(spec, Exit) else Exit(spec) for name, spec in after.items()}
    with evaluating(body):
        calls = record(body, inputs)
        points = find_points(body, calls, {name: spec.read for name, spec in exits.items()})
        heads = nn.ModuleDict()
        class_token = has_class_token(body, inputs.names)
        for stage, point in enumerate(points, 1):
            activation = activation_of(calls, point)
            check_batch(calls, point, activation, len(inputs.example[0]))
            head = exits[point.name].head
            if isinstance(head, str):
                head = make_head(head, activation, num_classes, class_token, point.name)
            heads[str(stage)] = head
        with evaluating(heads):
            written = [is_written(calls, p, heads[str(s)]) for s, p in enumerate(points, 1)]
        del calls
    points = [replace(p, clone=clone) for p, clone in zip(points, written, strict=True)]
    heads.train(body.training)
    taps = Taps(points, heads)
    taps.attach(body)
    network = ExitNetwork(body, compiled, taps, inputs, output, num_classes)
    try:
        _check(network, inputs)
    except BaseException:
        taps.detach(body)
        raise
    return network


def _check(network: ExitNetwork, inputs: Inputs) -> None:
    """Check outputs and stages in eval mode.

    Raises:
        ValueError: an output without the batch as dimension 0, a body's output of another number of
            classes, a cut that mixes rows, or stages that differ from the forward pass.
    """
    rows, classes = len(inputs.example[0]), network.num_classes
    with evaluating(network, network.body):
        wanted = network(*[tensor.clone() for tensor in inputs.example])
        for stage, output in enumerate(wanted, 1):
            if not output.dim() or output.shape[0] != rows:
                raise ValueError(
                    f"output {stage} must have the batch as dimension 0, found "
                    f"{list(output.shape)} for a batch of {rows}"
                )
        if classes is not None and wanted[-1].shape[-1] != classes:
            raise ValueError(
                f"the body's output must have num_classes = {classes} values, found "
                f"{list(wanted[-1].shape)}; num_classes=None is for other outputs"
            )
        found = list(network.stages(*[tensor.clone() for tensor in inputs.example]))
        for stage, output in found:
            if not close(output, wanted[stage - 1]):
                raise ValueError(
                    f"stages must equal forward in eval mode, found a difference at stage {stage}; "
                    "a body whose result changes from call to call can have no exits"
                )
