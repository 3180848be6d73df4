"""The segments of a network's current modules, checked against its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .cut import CutError
from .exporting import CannotExport, cutter_of, export
from .inputs import Inputs
from .places import refusal
from .taps import Taps

Run = Callable[..., list[Tensor]]


class Program:
    """Segments, and whether they still stand for the network.

    Args:
        segments: one a stage.
        guard: raises AssertionError for inputs of sizes that the graph does not stand for.
        modules: all modules of the network.
        example: the inputs that it was exported with.
    """

    def __init__(
        self,
        segments: Sequence[nn.Module],
        guard: nn.Module | None,
        modules: Sequence[nn.Module],
        example: Sequence[Tensor],
    ) -> None:
        self.segments = tuple(segments)
        self._guard = guard
        self._modules = tuple(modules)
        self._children = [
            (module._modules, name, child)
            for module in modules
            for name, child in module._modules.items()
        ]
        self._tensors = [
            (held, name, tensor, None if tensor is None else (tensor.dtype, tensor.device))
            for module in modules
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
        ]
        self._sizes = {_sizes(example): True}

    def is_same(self) -> bool:
        """Whether modules, parameters and buffers are those of the export; values may change."""
        for held, name, tensor, kind in self._tensors:
            if held.get(name) is not tensor:
                return False
            if tensor is not None and (tensor.dtype, tensor.device) != kind:
                return False
        return all(held.get(name) is child for held, name, child in self._children)

    def is_current(self) -> bool:
        """Whether it also stands for the modules' modes: all are in eval mode."""
        return not any(module.training for module in self._modules) and self.is_same()

    def accepts(self, inputs: Sequence[Tensor]) -> bool:
        """Whether the graph stands for inputs of these sizes."""
        sizes = _sizes(inputs)
        if sizes not in self._sizes:
            self._sizes[sizes] = _passes(self._guard, inputs)
        return self._sizes[sizes]


def _sizes(inputs: Sequence[Tensor]) -> tuple[tuple[object, ...], ...]:
    """What a graph may depend on: all but the batch and the values."""
    return tuple((tensor.dtype, *tensor.shape[1:]) for tensor in inputs)


def _passes(guard: nn.Module | None, inputs: Sequence[Tensor]) -> bool:
    if guard is None:
        return False
    if inputs[0].shape[0] == 1:  # the guards are of the batch that was exported
        inputs = [torch.cat([tensor, tensor]) for tensor in inputs]
    try:
        guard(*inputs)
    except AssertionError:
        return False
    return True


def build_program(body: nn.Module, taps: Taps, inputs: Inputs, run: Run) -> Program | str:
    """Export, cut and check; a string says why the network cannot be exported.

    The network must be in eval mode.

    Raises:
        ValueError: it can be cut, but not at these exits.
    """
    heads = taps.heads
    tensors: dict[str, Tensor] = dict(body.named_parameters(remove_duplicate=False))
    tensors |= dict(body.named_buffers(remove_duplicate=False))
    tensors |= {f"exits.{name}": tensor for name, tensor in heads.named_parameters()}
    tensors |= {f"exits.{name}": tensor for name, tensor in heads.named_buffers()}
    example = inputs.example_like(body)
    try:
        program = export(body, heads, run, example)
        guard = program.module()._modules.get("_guards_fn")
        cutter = cutter_of(program, tensors)
    except CannotExport as error:
        return str(error)
    try:
        segments = cutter.segments()
    except CutError as error:
        raise ValueError(refusal(cutter, error, taps.points)) from None
    modules = [*body.modules(), *heads.modules()]
    difference = _difference(segments, run, example)
    if difference is not None:
        return difference
    return Program(segments, guard, modules, example)


def _difference(segments: Sequence[nn.Module], run: Run, example: Sequence[Tensor]) -> str | None:
    """How the segments differ from the forward pass on other values and batch sizes, if they do.

    Rows are exchanged after each stage, and leave after the first.
    """
    inputs = [_changed(tensor) for tensor in example]
    wanted = run(*[tensor.clone() for tensor in inputs])
    for keep in (list(range(len(inputs[0]))), [1], [2, 0, 1]):
        rows = torch.tensor(keep, device=inputs[0].device)
        at = torch.arange(len(inputs[0]), device=inputs[0].device)
        state: tuple[Tensor, ...] = tuple(tensor.clone() for tensor in inputs)
        for stage, segment in enumerate(segments, 1):
            output, *rest = segment(*state)
            if not close(output, wanted[stage - 1].index_select(0, at)):
                return f"the exported graph differs from forward at stage {stage}"
            order = rows if stage == 1 else torch.arange(len(at), device=at.device).flip(0)
            state = tuple(tensor.index_select(0, order) for tensor in rest)
            at = at.index_select(0, order)
    return None


def _changed(tensor: Tensor) -> Tensor:
    """Three rows of like values in another order."""
    rows = torch.cat([tensor.flip(0), tensor])[:3]
    return rows * 0.875 if tensor.is_floating_point() else rows


def close(found: Tensor, wanted: Tensor) -> bool:
    """Equal within rounding of the type; the same places may be infinite or nan."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not found.is_floating_point():
        return torch.equal(found, wanted)
    scale = float(wanted.detach().float().nan_to_num(0, 0, 0).abs().amax()) if len(wanted) else 0.0
    tolerance = min(1000 * torch.finfo(found.dtype).eps, 0.05) * scale
    return torch.allclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True)
