"""Export a trained network as ONNX files that any runtime reads, verified before they are written.

The folder has one graph per stage (``stage1.onnx``, ``stage2.onnx``, ...) or all in ``model.onnx``,
and ``manifest.json``. docs/export.md describes the format and how to run it without this package.

Legend: C channels, H height, W width, N images.
"""

from __future__ import annotations

import hashlib
import json
import operator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor

from ...._version import __version__
from ....nets import AnytimeNetwork
from ....store import WeightsInfo
from ....store.weights import MAX_SIDE
from ...folding import Array, FoldedNetwork
from ...model_source import resolve
from ...module_engine import eval_copy
from ..graphs.models import OPSET
from ..graphs.single_file import join
from ..graphs.standard import build_standard, standard_models
from ..manifest import FILE, GraphFile, Manifest, read_manifest
from .directory import require_place, write_folder
from .quantize import quantize
from .verify import check, run_single, run_stages

FORMATS = ("onnx",)
SIZES = {"cifar": 32, "imagenet": 224}  # default image sizes, by the network's stem


def export(
    source: AnytimeNetwork | str | Path,
    folder: str | Path,
    *,
    format: str = "onnx",
    image_size: int | tuple[int, int] | None = None,
    info: WeightsInfo | None = None,
    single_file: bool = False,
    calibration: Tensor | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a network's stages as ONNX graphs, verified against PyTorch.

    Args:
        source: a network, the folder of a finished run, or a weights file.
        folder: the destination, new or empty.
        format: ``"onnx"``.
        image_size: pixels per side, or (height, width); None takes ``info``'s, else 32, or 224 for
            ImageNet's stem.
        info: classes and preprocessing, if the source does not have them.
        single_file: all stages in one file, the later ones in ``If`` branches.
        calibration: images ``[N, C, H, W]``, normalised as in training, to quantise to 8 bits with;
            None keeps float32.
        overwrite: replace an export in ``folder``.

    Returns:
        The manifest in ``folder``.

    Raises:
        ValueError: a source, folder or option that does not fit (``FoldError``: modules that are
            not plain, as while a network is pruned).
        RunError: the graphs' logits differ from PyTorch's, or the folder cannot be written. Nothing
            is left in ``folder``.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, found {format!r}")
    folder = Path(folder)
    require_place(folder, overwrite)
    found = resolve(source)
    source_network = found.require_nested("an export", "export what it was exported from")
    folded, network = FoldedNetwork.of(source_network), eval_copy(source_network)
    info = info or found.info
    size = _image_size(image_size, info, network)
    graphs = build_standard(folded)
    stages = tuple(graph.names for graph in graphs)
    models, shapes = standard_models(folded, graphs, size)
    checked = check(network, run_stages(models, stages, network), size)
    quantised = None
    if calibration is not None:
        models = quantize(models, stages, _calibration(calibration, network, size))
        quantised = {"bits": 8, "images": len(calibration)}
        run_stages(models, stages, network)
    if single_file:
        models = [join(models)]
        if quantised is None:
            check(network, run_single(models[0], network.num_stages), size)
    names = ["model.onnx"] if single_file else [f"stage{n}.onnx" for n, _ in enumerate(models, 1)]
    contents = {n: m.SerializeToString() for n, m in zip(names, models, strict=True)}
    manifest = Manifest(
        model=network.name,
        arguments=network.arguments,
        architecture=asdict(network.architecture),
        in_channels=network.in_channels,
        num_classes=network.num_classes,
        image_size=size,
        single_file=single_file,
        files=tuple(
            GraphFile(name, hashlib.sha256(content).hexdigest(), len(content))
            for name, content in contents.items()
        ),
        stages=stages,
        shapes={name: tuple(map(int, shape[1:])) for name, shape in shapes.items() if shape},
        opset=OPSET,
        anynest=__version__,
        quantised=quantised,
        checked=checked,
        info=info,
    )
    contents[FILE] = (json.dumps(manifest.to_json(), indent=2) + "\n").encode()
    write_folder(folder, contents)
    return read_manifest(folder)


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


def _calibration(images: Tensor, network: AnytimeNetwork, size: tuple[int, int]) -> Array:
    wanted = (network.in_channels, *size)
    if images.dim() != 4 or tuple(images.shape[1:]) != wanted or not images.is_floating_point():
        raise ValueError(
            f"calibration must be normalised images [N, {', '.join(map(str, wanted))}], found "
            f"{images.dtype} {list(images.shape)}"
        )
    return np.array(images.detach().cpu().numpy(), dtype=np.float32)
