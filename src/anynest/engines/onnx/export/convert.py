"""Convert any network with ``segments`` to ONNX graphs, one per stage, and compare them.

All segments are exported at once, one after the other, and the graph is cut where the state crosses
from a segment to the next (graphs/cut.py): the fixed cost of an export is paid once. The batch is
dynamic, and so are all other sizes of the inputs that the network leaves open.

Legend: B batch, S stages.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...checks import check_threads
from ...inputs import InputSpec, whole
from ...module_engine import eval_copy
from ...segment_engine import SegmentError, read_segments
from ..executor import Executor
from ..executor_cache import SerializedGraphs
from ..graphs.cut import DOMAIN, CutError, GraphCutter, rename_sizes, shape_of
from ..graphs.linear import merge_linear
from ..graphs.reshapes import simplify_reshapes
from ..manifest import DTYPES, GraphInput
from .compare import (
    REMEDY,
    TOLERANCE,
    ConversionError,
    compare_outputs,
    run_segments,
    varied,
)

if TYPE_CHECKING:
    from ....nets.staged import StagedModule

BATCH = "batch"  # the symbolic size
SIDE = 32  # pixels of random images


@dataclass(frozen=True)
class Converted:
    """Graphs that were compared with PyTorch.

    Attributes:
        models: each stage's ``ModelProto``.
        graphs: the same, serialised, and the network's inputs.
        spec: the inputs as a session takes them.
        sizes: the least and the largest value of the inputs' sizes that may vary.
        shapes: of every input and output of the graphs, without the batch.
        segments: the network's, copied, in eval mode.
        example: the inputs in order.
        checked: the batches that were compared, and the largest error.
    """

    models: list[Any]
    graphs: SerializedGraphs
    spec: InputSpec
    sizes: dict[str, tuple[int, int | None]]
    shapes: dict[str, tuple[int | str, ...]]
    segments: nn.Module
    example: tuple[Tensor, ...]
    checked: dict[str, Any]


def convert(
    network: StagedModule,
    example: Mapping[str, Tensor] | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    threads: int | None = None,
) -> Converted:
    """Graphs of a network, compared with PyTorch.

    Args:
        network: any network with ``segments``.
        example: inputs by name; None: the network's ``example_inputs``, or random images.
        image_size: of the random images, pixels per side or (height, width).
        threads: of ONNX Runtime within one operation while it is compared.

    Raises:
        ConversionError: no segments or example, an operation that ONNX or ONNX Runtime lacks, or
            outputs that differ from PyTorch's. It names the stage.
    """
    check_threads(threads)
    spec = InputSpec.of(network).all_required()
    try:
        found = read_segments(network)
    except SegmentError as error:
        raise ConversionError(str(error).partition(":")[0]) from error
    if len(found) != network.num_stages:
        raise ConversionError(f"segments must be {network.num_stages}, found {len(found)}")
    inputs = example_of(network, spec, example, image_size)
    with torch.inference_mode(False), torch.no_grad():
        segments = eval_copy(nn.ModuleList(found))
        chain = _Chain(segments)
        program = _trace(chain, inputs)
        model = _to_onnx(program)
    limits = _name_sizes(model, program)
    simplify_reshapes(model)
    merge_linear(model)
    try:
        models, stages = GraphCutter(model, spec.names).cut()
        serialised = tuple(part.SerializeToString() for part in models)
    except CutError as error:
        raise ConversionError(f"stage {error.stage} cannot be cut off: {error}") from error
    except ValueError as error:  # protobuf's limit
        raise ConversionError(f"a stage is too large for an ONNX graph: {error}") from error
    described = {v.name: v for m in models for v in (*m.graph.input, *m.graph.output)}
    given = {value.name: value for value in model.graph.input}
    taken = tuple(_input(name, given[name], t) for name, t in zip(spec.names, inputs, strict=True))
    try:
        executor = Executor(serialised, stages, taken, threads=threads)
    except RuntimeError as error:
        raise ConversionError(str(error), f"try network.float(), or {REMEDY}") from error
    taken, checked = _compare(segments, executor, taken, inputs)
    open_sizes = {size for entry in taken for size in entry.shape}
    return Converted(
        models,
        SerializedGraphs(serialised, tuple(stages), taken, whole(network, "num_classes")),
        spec,
        {name: limit for name, limit in limits.items() if name in open_sizes},
        {name: tuple(shape_of(value)[1:]) for name, value in described.items()},
        segments,
        inputs,
        checked,
    )


def example_of(
    network: nn.Module,
    spec: InputSpec,
    example: Mapping[str, Tensor] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> tuple[Tensor, ...]:
    """Inputs of at least two samples, on the CPU, in the order of ``spec``.

    Raises:
        ConversionError: none is known, or it does not fit.
    """
    if example is None:
        given = getattr(network, "example_inputs", None)
        example = dict(zip(spec.names, given, strict=False)) if given else None
    is_image = spec.channels is not None and len(spec.names) == 1
    if is_image and (example is None or image_size is not None):
        size = image_size if image_size is not None else SIDE
        height, width = size if isinstance(size, tuple) else (size, size)
        generator = torch.Generator().manual_seed(0)
        assert spec.channels is not None
        x = torch.randn(2, spec.channels, height, width, generator=generator)
        example = {spec.names[0]: x}
    if example is None:
        raise ConversionError(
            f"the graphs of {type(network).__name__} need an example of its inputs: set "
            "example_inputs to a tuple of tensors"
        )
    try:
        values = tuple(value.to("cpu") for value in spec.read(example).values())
    except (TypeError, ValueError) as error:
        raise ConversionError(f"the example does not fit: {error}") from error
    for name, value in zip(spec.names, values, strict=True):
        if str(value.dtype).removeprefix("torch.") not in DTYPES:
            raise ConversionError(
                f"graphs take no {value.dtype}, found it in input {name}",
                f"convert the network with .float(), or {REMEDY}",
            )
    return tuple(torch.cat([v, v]) for v in values) if len(values[0]) == 1 else values


class _Chain(nn.Module):
    """All segments, one after the other, with a mark wherever state crosses.

    Attributes:
        last: ``last.stage`` is the segment that was called last.
    """

    def __init__(self, segments: nn.Module) -> None:
        super().__init__()
        self.segments = segments
        self.last = SimpleNamespace(stage=0)  # torch.export restores plain attributes
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        state = inputs
        segments = list(self.segments.children())
        for stage, segment in enumerate(segments, 1):
            self.last.stage = stage
            found = segment(*state)
            outputs.append(found[0])
            state = tuple(_mark(tensor, stage) for tensor in found[1:])
        return tuple(outputs)


def _mark(tensor: Tensor, stage: int) -> Tensor:
    marked: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::Boundary",
        (tensor,),
        {"stage": stage},
        dtype=tensor.dtype,
        shape=tensor.shape,
        version=1,
    )
    return marked


def _trace(chain: _Chain, inputs: tuple[Tensor, ...]) -> Any:
    """The exported program; the batch alone is dynamic where other sizes cannot be."""
    batch, auto = torch.export.Dim(BATCH), torch.export.Dim.AUTO
    every: list[dict[int, Any]] = [
        {0: batch, **dict.fromkeys(range(1, value.dim()), auto)} for value in inputs
    ]
    failure: Exception | None = None
    for sizes in (every, [{0: batch} for _ in inputs]):
        try:
            with _quiet(), _plain_attention():
                return torch.export.export(
                    chain, inputs, dynamic_shapes=(tuple(sizes),), strict=False
                )
        except Exception as error:  # whatever the traced code raises
            failure = error
    assert failure is not None
    raise ConversionError(
        f"stage {chain.last.stage} cannot be exported: {_reason(failure)}"
    ) from failure


def _to_onnx(program: Any) -> Any:
    """The ``ModelProto`` of a program."""
    try:
        with _quiet():
            found = torch.onnx.export(program, dynamo=True, verbose=False)
    except ImportError as error:
        raise ConversionError(
            f"the conversion to ONNX needs onnxscript: {_reason(error)}",
            f"install onnxscript, or {REMEDY}",
        ) from error
    except Exception as error:  # the exporter's own
        reason = _reason(error)
        raise ConversionError(
            f"stage {_stage_of(program, reason)} cannot be converted: {reason}"
        ) from error
    assert found is not None
    model = found.model_proto
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    return model


def _stage_of(program: Any, reason: str) -> str:
    """The stage of the operation that a message names, "?" if it names none."""
    with _quiet():
        decomposed = program.run_decompositions()
    for node in (*program.graph.nodes, *decomposed.graph.nodes):
        name = ".".join(str(node.target).split(".")[:2])  # without the overload
        if node.op == "call_function" and f"'{name}'" in reason:
            stack = str(node.meta.get("nn_module_stack", ""))
            found = re.search(r"segments\.(\d+)", stack)
            if found:
                return str(int(found[1]) + 1)
    return "?"


def _reason(error: BaseException) -> str:
    """The first line of the innermost error's message."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _name_sizes(model: Any, program: Any) -> dict[str, tuple[int, int | None]]:
    """Name the inputs' symbolic sizes ``batch``, ``size1``, ``size2``, ...

    Returns:
        The least and the largest value that the program is for.

    Raises:
        ConversionError: the network is for one batch size.
    """
    renamed: dict[str, str] = {}
    for value in model.graph.input:
        for dimension, size in enumerate(shape_of(value)):
            if dimension == 0 and (not isinstance(size, str) or size.isdigit()):
                raise ConversionError(f"the network must take batches of any size, found {size}")
            if isinstance(size, str) and size.isidentifier() and size not in renamed:
                renamed[size] = f"size{len(renamed)}" if renamed else BATCH
    limits: dict[str, tuple[int, int | None]] = {}
    for symbol, found in program.range_constraints.items():
        if renamed.get(str(symbol), BATCH) != BATCH:
            most = float(found.upper) if found.upper < (1 << 31) else math.inf
            limits[renamed[str(symbol)]] = (
                max(1, int(found.lower)),
                None if math.isinf(most) else int(most),
            )
    rename_sizes(model, renamed)
    return limits


def _input(name: str, value: Any, tensor: Tensor) -> GraphInput:
    shape = tuple(shape_of(value)[1:])
    return GraphInput(name, str(tensor.dtype).removeprefix("torch."), shape)


def _compare(
    segments: nn.Module,
    executor: Executor,
    taken: tuple[GraphInput, ...],
    example: tuple[Tensor, ...],
) -> tuple[tuple[GraphInput, ...], dict[str, Any]]:
    """Compare all stages on random inputs; sizes for which they differ become fixed."""
    batches = (1, len(example[0]) + 1)
    worst = max(compare_outputs(segments, executor, varied(example, rows)) for rows in batches)
    fixed = tuple(
        replace(entry, shape=tuple(value.shape[1:]))
        for entry, value in zip(taken, example, strict=True)
    )
    if fixed != taken:
        larger = _doubled(taken, varied(example, 2))
        try:
            with torch.no_grad():
                run_segments(segments, larger)
        except Exception:  # the network is not for these; smaller ones are not tried
            pass
        else:
            try:
                worst = max(worst, compare_outputs(segments, executor, larger))
            except ConversionError:
                taken = fixed
    return taken, {"batches": list(batches), "max_error": worst, "tolerance": TOLERANCE}


def _doubled(taken: Sequence[GraphInput], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs that are twice as large where their sizes may vary."""
    found = []
    for entry, value in zip(taken, values, strict=True):
        for dimension, size in enumerate(entry.shape, 1):
            if isinstance(size, str):
                value = torch.cat([value, value], dimension)
        found.append(value)
    return tuple(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings and progress."""
    names = ("torch.onnx", "torch.export", "torch.fx", "torch._export", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without PyTorch's fused transformer layers, which ONNX lacks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
