"""The manifest of an exported folder: what the graphs compute, their interfaces and checksums.

It is untrusted input: every field has a type, file names stay within the folder, sizes are bounded,
and nothing in it is executed.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ...store import RunFolderError, WeightsInfo
from ...store.weights import MAX_SIDE, check_preparation, is_number

FILE = "manifest.json"
FORMAT = "anynest-export-1"
MAX_BYTES = 16 << 20
MAX_GRAPH = (1 << 31) - 1  # the limit of a protocol buffer
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.onnx")
DIGEST = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


@dataclass(frozen=True)
class GraphFile:
    """One file of the folder."""

    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class StageNames:
    """The names of a stage's inputs and outputs.

    Attributes:
        inputs: inputs of the network: ``image``, where the stage reads it, and masks.
        reads: state of earlier stages.
        gives: state that later stages read.
        logits: its output.
    """

    inputs: tuple[str, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    logits: str


@dataclass(frozen=True)
class Manifest:
    """The contents of an exported folder.

    Attributes:
        model: the network's registered name, or an empty string.
        arguments: ``create_model(model, **arguments)`` builds the network.
        architecture: the fields of its ``Architecture``, which unregistered networks have too.
        in_channels: C.
        num_classes: K.
        image_size: (height, width).
        single_file: whether all stages are in one file.
        files: the graphs' files, in the order of the stages.
        stages: every stage's inputs and outputs.
        shapes: of every value, without the batch.
        opset: of the standard domain.
        anynest: the version that wrote it.
        quantised: how, or None for float32.
        checked: what was compared with PyTorch, and the largest error.
        info: classes and preprocessing, where they are known.
    """

    model: str
    arguments: dict[str, Any]
    architecture: dict[str, Any]
    in_channels: int
    num_classes: int
    image_size: tuple[int, int]
    single_file: bool
    files: tuple[GraphFile, ...]
    stages: tuple[StageNames, ...]
    shapes: dict[str, tuple[int, ...]]
    opset: int
    anynest: str
    quantised: dict[str, Any] | None
    checked: dict[str, Any]
    info: WeightsInfo | None

    @property
    def num_stages(self) -> int:
        """S."""
        return len(self.stages)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        plain = asdict(self)
        info = plain.pop("info")
        wanted = ("mean", "std", "image_size", "fit", "classes", "data")
        return {"format": FORMAT, **plain, "images": info and {key: info[key] for key in wanted}}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder.

    Raises:
        RunFolderError: it is missing, damaged, of another format or too large, in one line.
    """
    path = folder / FILE
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"its format must be {FORMAT}, found {found!r}")
        return _parse(data)
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise RunFolderError(f"{path} is not a valid manifest: {reason}; export again") from error


def _parse(data: dict[str, Any]) -> Manifest:
    stages = tuple(
        _stage(_of(entry, dict, "stages")) for entry in _of(data["stages"], list, "stages")
    )
    files = tuple(_file(_of(entry, dict, "files")) for entry in _of(data["files"], list, "files"))
    single = _of(data["single_file"], bool, "single_file")
    if not stages or len(files) != (1 if single else len(stages)):
        raise ValueError(f"{len(stages)} stages cannot be in {len(files)} files")
    if len({entry.file for entry in files}) < len(files):
        raise ValueError("files must have different names")
    quantised = data["quantised"]
    manifest = Manifest(
        model=_of(data["model"], str, "model"),
        arguments=_of(data["arguments"], dict, "arguments"),
        architecture=_of(data["architecture"], dict, "architecture"),
        in_channels=_count(data["in_channels"], "in_channels"),
        num_classes=_count(data["num_classes"], "num_classes"),
        image_size=_size(data["image_size"]),
        single_file=single,
        files=files,
        stages=stages,
        shapes={
            _of(name, str, "shapes"): tuple(
                _count(n, f"shapes: {name}") for n in _of(sizes, list, name)
            )
            for name, sizes in _of(data["shapes"], dict, "shapes").items()
        },
        opset=_count(data["opset"], "opset"),
        anynest=_of(data["anynest"], str, "anynest"),
        quantised=None if quantised is None else _of(quantised, dict, "quantised"),
        checked=_of(data["checked"], dict, "checked"),
        info=None,
    )
    return (
        manifest
        if data["images"] is None
        else _with_info(manifest, _of(data["images"], dict, "images"))
    )


def _with_info(manifest: Manifest, images: dict[str, Any]) -> Manifest:
    values = {}
    for key in ("mean", "std"):
        numbers = _of(images[key], list, key)
        if len(numbers) != manifest.in_channels or not all(map(is_number, numbers)):
            raise ValueError(
                f"{key} must be {manifest.in_channels} numbers, found {numbers!r}"[:200]
            )
        values[key] = tuple(numbers)
    classes = tuple(_of(name, str, "classes") for name in _of(images["classes"], list, "classes"))
    if len(classes) != manifest.num_classes:
        raise ValueError(f"classes must be {manifest.num_classes} names, found {len(classes)}")
    info = WeightsInfo(
        model=manifest.model,
        arguments=manifest.arguments,
        classes=classes,
        image_size=_count(images["image_size"], "images: image_size"),
        data=_of(images["data"], str, "data"),
        anynest=manifest.anynest,
        fit=_of(images["fit"], str, "fit"),
        mean=values["mean"],
        std=values["std"],
    )
    check_preparation(info)
    return replace(manifest, info=info)


def _stage(entry: dict[str, Any]) -> StageNames:
    lists = {
        key: tuple(_of(name, str, key) for name in _of(entry[key], list, key))
        for key in ("inputs", "reads", "gives")
    }
    return StageNames(**lists, logits=_of(entry["logits"], str, "logits"))


def _file(entry: dict[str, Any]) -> GraphFile:
    name, digest = _of(entry["file"], str, "file"), _of(entry["sha256"], str, "sha256")
    size = _count(entry["size"], "size")
    if not NAME.fullmatch(name):
        raise ValueError(f"files must be plain names ending in .onnx, found {name!r}"[:200])
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, found {digest!r}"[:200])
    if size > MAX_GRAPH:
        raise ValueError(f"{name} must be smaller than 2 GiB, found {size} bytes")
    return GraphFile(name, digest, size)


def _of(value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, found {type(value).__name__}")
    return value


def _count(value: Any, name: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer, found {value!r}"[:200])
    return value


def _size(value: Any) -> tuple[int, int]:
    sides = _of(value, list, "image_size")
    if len(sides) != 2 or any(_count(side, "image_size") > MAX_SIDE for side in sides):
        raise ValueError(f"image_size must be [height, width], found {value!r}"[:200])
    return sides[0], sides[1]
