"""Export a trained network as ONNX files that any runtime reads, verified before they are written.

The folder has one graph per stage (``stage1.onnx``, ``stage2.onnx``, ...) or all in ``model.onnx``,
and ``manifest.json``. docs/export.md describes the format and how to run it without this package.

Legend: C channels, H height, W width, N images.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ...._version import __version__
from ....nets import AnytimeNetwork
from ....store import WeightsInfo
from ....store.weights import MAX_SIDE
from ...folding import Array, FoldedNetwork
from ...inputs import Inputs, InputSpec, whole
from ...model_source import resolve
from ...module_engine import eval_copy
from ..graphs.single_file import join
from ..graphs.standard import build_standard, standard_models
from ..manifest import FILE, GraphFile, GraphInput, Manifest, StageNames, image_input, read_manifest
from .compare import compare_single, varied
from .convert import convert
from .directory import require_place, write_folder
from .quantize import quantize
from .verify import check, run_single, run_stages

if TYPE_CHECKING:
    from ....nets.staged import StagedModule

FORMATS = ("onnx",)
SIZES = {"cifar": 32, "imagenet": 224}  # default image sizes, by the network's stem


@dataclass(frozen=True)
class _Graphs:
    """What differs between nested networks and others.

    Attributes:
        models: each stage's ``ModelProto``.
        stages: their inputs and outputs.
        inputs: the network's.
        sizes: limits of the inputs' sizes that may vary.
        shapes: of every input and output, without the batch.
        image_size: (H, W), where the input is images.
        checked: what was compared with PyTorch.
        architecture: of nested networks.
        check_single: compares a file of all stages with PyTorch.
    """

    models: list[Any]
    stages: tuple[StageNames, ...]
    inputs: tuple[GraphInput, ...]
    sizes: dict[str, tuple[int, int | None]]
    shapes: dict[str, tuple[int | str, ...]]
    image_size: tuple[int, int] | None
    checked: dict[str, Any]
    architecture: dict[str, Any] | None
    check_single: Callable[[Any], object]


def export(
    source: nn.Module | str | Path,
    folder: str | Path,
    *,
    format: str = "onnx",
    image_size: int | tuple[int, int] | None = None,
    example: Mapping[str, Tensor] | None = None,
    info: WeightsInfo | None = None,
    single_file: bool = False,
    calibration: Inputs | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a network's stages as ONNX graphs, verified against PyTorch.

    Args:
        source: a network with ``segments`` or a nested one, the folder of a finished run, or a
            weights file.
        folder: the destination, new or empty.
        format: ``"onnx"``.
        image_size: pixels per side, or (height, width); None takes ``info``'s, else 32, or 224 for
            ImageNet's stem. Of networks that are not nested: of the images that are traced.
        example: inputs by name, which networks that are not nested are traced with; None: their
            ``example_inputs``, or random images. Not with ``image_size``.
        info: classes and preprocessing, if the source does not have them.
        single_file: all stages in one file, the later ones in ``If`` branches.
        calibration: inputs ``[N, ...]``, such as images normalised as in training, to quantise to
            8 bits with; None keeps float32.
        overwrite: replace an export in ``folder``.

    Returns:
        The manifest in ``folder``.

    Raises:
        ValueError: a source, folder or option that does not fit (``FoldError``: modules that are
            not plain, as while a network is pruned; ``ConversionError``: a network without graphs,
            or whose graphs' outputs differ).
        RunError: the graphs' logits differ from PyTorch's, or the folder cannot be written. Nothing
            is left in ``folder``.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, found {format!r}")
    folder = Path(folder)
    require_place(folder, overwrite)
    found = resolve(source)
    network = found.require_network("export what it was exported from")
    info = info or found.info
    if example is not None and (image_size is not None or isinstance(network, AnytimeNetwork)):
        what = "image_size" if image_size is not None else "a nested network"
        raise ValueError(f"example must not be given with {what}: give one of the two")
    if isinstance(network, AnytimeNetwork):
        graphs = _nested(network, _image_size(image_size, info, network))
    else:
        known = info.image_size if info is not None else None
        graphs = _segmented(network, example, image_size or (known if example is None else None))
    models, quantised = graphs.models, None
    if calibration is not None:
        arrays = _calibration(calibration, network, graphs)
        models = quantize(models, graphs.stages, arrays)
        quantised = {"bits": 8, "images": len(next(iter(arrays.values())))}
        run_stages(models, graphs.stages, graphs.inputs)
    if single_file:
        models = [join(models)]
        if quantised is None:
            graphs.check_single(models[0])
    names = ["model.onnx"] if single_file else [f"stage{n}.onnx" for n, _ in enumerate(models, 1)]
    contents = {n: m.SerializeToString() for n, m in zip(names, models, strict=True)}
    made: Any = network if isinstance(network, AnytimeNetwork) else None
    made = made or getattr(network, "_anynest_origin", None)  # of registered networks
    manifest = Manifest(
        model=getattr(made, "name", ""),
        arguments=getattr(made, "arguments", {}),
        architecture=graphs.architecture,
        inputs=graphs.inputs,
        sizes=graphs.sizes,
        in_channels=whole(network, "in_channels"),
        num_classes=whole(network, "num_classes"),
        image_size=graphs.image_size,
        single_file=single_file,
        files=tuple(
            GraphFile(name, hashlib.sha256(content).hexdigest(), len(content))
            for name, content in contents.items()
        ),
        stages=graphs.stages,
        shapes=graphs.shapes,
        opset=max(o.version for m in models for o in m.opset_import if not o.domain),
        anynest=__version__,
        quantised=quantised,
        checked=graphs.checked,
        info=info,
    )
    contents[FILE] = (json.dumps(manifest.to_json(), indent=2) + "\n").encode()
    write_folder(folder, contents)
    return read_manifest(folder)


def _nested(source: AnytimeNetwork, size: tuple[int, int]) -> _Graphs:
    """The graphs of a nested network, built from its plan."""
    folded, network = FoldedNetwork.of(source), eval_copy(source)
    built = build_standard(folded)
    stages = tuple(graph.names for graph in built)
    models, shapes = standard_models(folded, built, size)
    inputs = (image_input(network.in_channels, size),)
    return _Graphs(
        models,
        stages,
        inputs,
        {},
        {name: tuple(map(int, shape[1:])) for name, shape in shapes.items() if shape},
        size,
        check(network, run_stages(models, stages, inputs), size),
        asdict(network.architecture),
        lambda model: check(network, run_single(model, network.num_stages), size),
    )


def _segmented(
    network: StagedModule,
    example: Mapping[str, Tensor] | None,
    image_size: int | tuple[int, int] | None,
) -> _Graphs:
    """The graphs of any other network."""
    found = convert(network, example, image_size)
    height, width = found.example[0].shape[-2:] if found.spec.channels is not None else (0, 0)
    return _Graphs(
        found.models,
        found.graphs.stages,
        found.graphs.inputs,
        found.sizes,
        found.shapes,
        (height, width) if found.spec.channels is not None else None,
        found.checked,
        None,
        lambda model: compare_single(
            found.segments, model, found.spec.names, varied(found.example, 2)
        ),
    )


def _image_size(
    given: int | tuple[int, int] | None, info: WeightsInfo | None, network: AnytimeNetwork
) -> tuple[int, int]:
    known = info.image_size if info else SIZES[network.architecture.stem]
    sides = given if given is not None else known
    pair = sides if isinstance(sides, tuple | list) else (sides, sides)
    try:
        height, width = (0 if isinstance(side, bool) else operator.index(side) for side in pair)
        fits = min(height, width) >= 1 and max(height, width) <= MAX_SIDE
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"image_size must be 1 to {MAX_SIDE} pixels per side, or (height, width), found "
            f"{given!r:.60}"
        )
    return height, width


def _calibration(given: Inputs, network: nn.Module, graphs: _Graphs) -> dict[str, Array]:
    """The calibration inputs by their names in the graphs."""
    if isinstance(network, AnytimeNetwork):
        wanted = graphs.inputs[0].shape
        fits = isinstance(given, Tensor) and given.dim() == 4 and given.is_floating_point()
        if not isinstance(given, Tensor) or not fits or tuple(given.shape[1:]) != wanted:
            found = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else "others"
            raise ValueError(
                f"calibration must be normalised images [N, {', '.join(map(str, wanted))}], found "
                f"{found}"
            )
        values = [given]
    else:
        values = list(InputSpec.of(network).all_required().read(given).values())
    return {
        entry.name: np.array(value.detach().cpu().numpy(), dtype=entry.dtype)
        for entry, value in zip(graphs.inputs, values, strict=True)
    }
