"""Read an exported folder and check it against its manifest; nothing in it is executed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ...nets import Architecture
from ...nets.nested.wiring import build_plan
from ...store import RunFolderError
from ..folding import Array, FoldedNetwork
from .executor_cache import SerializedGraphs
from .graphs.single_file import split
from .manifest import FILE, GraphFile, Manifest, read_manifest

DOMAINS = {"", "ai.onnx", "com.microsoft"}


@dataclass(frozen=True)
class Export:
    """The contents of an exported folder.

    Attributes:
        manifest: its manifest.
        graphs: one per stage.
        network: the weights of a nested network in float32; None for others and quantised graphs.
    """

    manifest: Manifest
    graphs: SerializedGraphs
    network: FoldedNetwork | None


def read_export(folder: str | Path) -> Export:
    """Read an exported folder and check it against its manifest.

    Raises:
        RunFolderError: a file is missing, damaged, invalid or outside the folder, in one line.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    contents = [_read_file(folder, entry) for entry in manifest.files]
    try:
        models = [_parse(content) for content in contents]
        if manifest.single_file:
            models = split(models[0])
            contents = [model.SerializeToString() for model in models]
        _check_values(manifest, models)
        is_folded = manifest.architecture is not None and not manifest.quantised
        network = _network(manifest, models) if is_folded else None
    except RunFolderError:
        raise
    except Exception as error:  # onnx raises errors of many types on hostile bytes
        lacking = isinstance(error, KeyError)
        reason = f"it lacks {error}" if lacking else " ".join(str(error).split())[:300]
        raise RunFolderError(f"{folder} is not a valid export: {reason}; export again") from error
    graphs = SerializedGraphs(
        tuple(contents), manifest.stages, manifest.inputs, manifest.num_classes
    )
    return Export(manifest, graphs, network)


def _read_file(folder: Path, entry: GraphFile) -> bytes:
    path = folder / entry.file
    if path.resolve().parent != folder.resolve():
        raise RunFolderError(f"{path} must be in the exported folder, found a link to elsewhere")
    try:
        with open(path, "rb") as file:
            content = file.read(entry.size + 1)
    except OSError as error:
        raise RunFolderError(
            f"cannot read {path}: {error.strerror or error}; export again"
        ) from error
    if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise RunFolderError(
            f"{path} does not match {FILE}: it is damaged or was changed; export again"
        )
    return content


def _parse(content: bytes) -> Any:
    """The model in a file; ValueError unless it has only plain operations with weights inside."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own
        raise ValueError(f"a graph cannot be decoded: {error}") from error
    if model.functions:
        raise ValueError("graphs must not define functions")
    graphs = [model.graph]
    for graph in graphs:  # extended in the loop
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ValueError(f"weights must be inside the graphs, {tensor.name!r} is elsewhere")
        for node in graph.node:
            if node.domain not in DOMAINS:
                raise ValueError(f"operations must be of ONNX's own domains, found {node.domain!r}")
            graphs += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return model


def _check_values(manifest: Manifest, models: list[Any]) -> None:
    """Inputs and outputs match the manifest, and each stage reads values of earlier ones."""
    if len(models) != manifest.num_stages:
        raise ValueError(f"there must be {manifest.num_stages} stages, found {len(models)}")
    known = {entry.name for entry in manifest.inputs}
    for number, (stage, model) in enumerate(zip(manifest.stages, models, strict=True), 1):
        taken = {value.name for value in model.graph.input}
        results = {value.name for value in model.graph.output}
        if taken != {*stage.inputs, *stage.reads} or results != {stage.logits, *stage.gives}:
            raise ValueError(f"the inputs and outputs of stage {number} are not those in {FILE}")
        if not taken <= known:
            raise ValueError(
                f"stage {number} reads {min(taken - known)!r}, which no earlier stage computes"
            )
        if results & known or len(results) < 1 + len(stage.gives):
            raise ValueError(f"stage {number} computes a value that there is already")
        known |= results


def _network(manifest: Manifest, models: list[Any]) -> FoldedNetwork:
    """The network of the manifest's architecture with the weights of the graphs."""
    from onnx import numpy_helper

    weights = {
        t.name: numpy_helper.to_array(t) for model in models for t in model.graph.initializer
    }
    allowed = {field.name for field in fields(Architecture)}
    found = manifest.architecture or {}
    if not set(found) <= allowed:
        raise ValueError(f"architecture has no field {min(set(found) - allowed)!r}")
    _bound(found, len(weights))
    architecture = Architecture(**{**found, "blocks": tuple(found["blocks"])})
    plan, outputs = build_plan(architecture), tuple(range(1, architecture.num_stages + 1))
    part = manifest.arguments.get("subnetwork")
    if len(outputs) > 1 and part is not None:
        if part not in outputs:
            raise ValueError(f"there is no stage {part!r} of {len(outputs)}")
        plan, outputs = plan.restrict(part), (part,)
    network = FoldedNetwork(plan, outputs, architecture.in_channels, {}, {})
    for layer in plan.layers:
        for node in layer.nodes:
            network.convolutions[layer.name, node.birth] = [
                _pair(
                    weights,
                    f"{layer.name}.stage{node.birth}.conv{number}",
                    (unit.outputs, unit.inputs, unit.kernel, unit.kernel),
                )
                for number, unit in enumerate(node.units, 1)
            ]
    for exit_ in plan.exits:
        shape = (plan.num_classes, exit_.features)
        network.heads[exit_.stage] = _pair(weights, f"head{exit_.stage}", shape)
    expected = (len(outputs), architecture.in_channels, plan.num_classes)
    if expected != (manifest.num_stages, manifest.in_channels, manifest.num_classes):
        raise ValueError("stages, channels or classes are not those of the architecture")
    return network


def _bound(architecture: Mapping[str, Any], weights: int) -> None:
    """ValueError for an architecture of more layers than there are weights, before it is built."""
    blocks, growth = architecture["blocks"], architecture["growth"]
    sound = isinstance(blocks, list) and all(type(n) is int for n in blocks)
    sound = sound and isinstance(growth, list) and 0 < len(growth) <= weights
    depth = growth[-1][-1] if sound and isinstance(growth[-1], list) and growth[-1] else None
    if type(depth) is not int or sum(blocks) * depth > weights or min(blocks, default=0) < 0:
        raise ValueError("the architecture is not that of the graphs")


def _pair(weights: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
    pair = []
    for key, wanted in ((f"{name}.weight", shape), (f"{name}.bias", shape[:1])):
        found = weights.get(key)
        if found is None or found.shape != wanted or found.dtype != np.float32:
            raise ValueError(f"{key} must be float32 {list(wanted)}, found another or none")
        pair.append(found)
    return pair[0], pair[1]
