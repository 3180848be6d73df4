"""The manifest of an exported folder: what the graphs compute, their interfaces and checksums.

It is untrusted input: every field has a type, file names stay within the folder, sizes are bounded,
and nothing in it is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ...nets.nested.plan import IMAGE
from ...store import RunFolderError, WeightsInfo
from ...store.weights import MAX_SIDE, check_preparation, is_number

FILE = "manifest.json"
FORMAT = "anynest-export-2"
FIRST_FORMAT = "anynest-export-1"  # nested networks alone, without "inputs" and "sizes"
DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
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
class GraphInput:
    """An input of the network.

    Attributes:
        name: in the graphs.
        dtype: numpy's name of its type.
        shape: without the batch; a string is a size that may vary, equal wherever it stands.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def image_input(
    channels: int, size: tuple[int | str, int | str] = ("height", "width")
) -> GraphInput:
    """The input of a nested network: images ``[B, C, H, W]``."""
    return GraphInput(IMAGE, "float32", (channels, *size))


@dataclass(frozen=True)
class Manifest:
    """The contents of an exported folder.

    Attributes:
        model: the network's registered name, or an empty string.
        arguments: ``create_model(model, **arguments)`` builds the network.
        architecture: the fields of a nested network's ``Architecture``, which unregistered ones
            have too; None for any other network.
        inputs: the network's.
        sizes: the least and the largest value of sizes that may vary; None: unlimited.
        in_channels: C, where the input is images; else None.
        num_classes: K, where the outputs are class logits; else None.
        image_size: (height, width) of image inputs; of networks that are not nested, other sizes
            may be accepted, too (``inputs``).
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
    architecture: dict[str, Any] | None
    inputs: tuple[GraphInput, ...]
    sizes: dict[str, tuple[int, int | None]]
    in_channels: int | None
    num_classes: int | None
    image_size: tuple[int, int] | None
    single_file: bool
    files: tuple[GraphFile, ...]
    stages: tuple[StageNames, ...]
    shapes: dict[str, tuple[int | str, ...]]
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
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if not isinstance(data, dict) or found not in (FORMAT, FIRST_FORMAT):
            raise ValueError(f"its format must be {FORMAT} or {FIRST_FORMAT}, found {found!r}")
        return _parse(_with_inputs(data) if found == FIRST_FORMAT else data)
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise RunFolderError(f"{path} is not a valid manifest: {reason}; export again") from error


def _with_inputs(data: dict[str, Any]) -> dict[str, Any]:
    """A manifest of the first format in the second one."""
    size = _size(data["image_size"]) if "image_size" in data else ()
    shape = [data.get("in_channels"), *size]
    return {**data, "inputs": [{"name": IMAGE, "dtype": "float32", "shape": shape}], "sizes": {}}


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
    manifest = Manifest(
        model=_of(data["model"], str, "model"),
        arguments=_of(data["arguments"], dict, "arguments"),
        architecture=_optional(data, "architecture", lambda v: _of(v, dict, "architecture")),
        in_channels=_optional(data, "in_channels", lambda v: _count(v, "in_channels")),
        num_classes=_optional(data, "num_classes", lambda v: _count(v, "num_classes")),
        image_size=_optional(data, "image_size", _size),
        inputs=_inputs(data["inputs"]),
        sizes={
            _of(name, str, "sizes"): _range(limits)
            for name, limits in _of(data["sizes"], dict, "sizes").items()
        },
        single_file=single,
        files=files,
        stages=stages,
        shapes={
            _of(name, str, "shapes"): _shape(sizes, name)
            for name, sizes in _of(data["shapes"], dict, "shapes").items()
        },
        opset=_count(data["opset"], "opset"),
        anynest=_of(data["anynest"], str, "anynest"),
        quantised=_optional(data, "quantised", lambda v: _of(v, dict, "quantised")),
        checked=_of(data["checked"], dict, "checked"),
        info=None,
    )
    _check_images(manifest)
    if data["images"] is None:
        return manifest
    return _with_info(manifest, _of(data["images"], dict, "images"))


def _check_images(manifest: Manifest) -> None:
    """The input of a nested network, and any that is images, is as the other fields say."""
    channels, size = manifest.in_channels, manifest.image_size
    first = manifest.inputs[0]
    if manifest.architecture is not None and (channels is None or size is None):
        raise ValueError("a nested network must have in_channels and image_size")
    if (channels is None) != (size is None):
        raise ValueError("in_channels and image_size must stand together")
    if channels is not None and (
        len(manifest.inputs) > 1 or len(first.shape) != 3 or first.shape[0] != channels
    ):
        raise ValueError(f"the input must be images of {channels} channels")
    if manifest.architecture is not None and first != image_input(*(channels or 0, size or (0, 0))):
        raise ValueError("the input of a nested network must be its images")


def _with_info(manifest: Manifest, images: dict[str, Any]) -> Manifest:
    values = {}
    for key in ("mean", "std"):
        numbers = _of(images[key], list, key)
        if len(numbers) != (manifest.in_channels or len(numbers)) or not all(
            map(is_number, numbers)
        ):
            raise ValueError(
                f"{key} must be {manifest.in_channels} numbers, found {numbers!r}"[:200]
            )
        values[key] = tuple(numbers)
    classes = tuple(_of(name, str, "classes") for name in _of(images["classes"], list, "classes"))
    if len(classes) != (manifest.num_classes or len(classes)):
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


def _inputs(value: Any) -> tuple[GraphInput, ...]:
    found = []
    for entry in _of(value, list, "inputs"):
        fields = _of(entry, dict, "inputs")
        name, dtype = _of(fields["name"], str, "inputs"), _of(fields["dtype"], str, "dtype")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}"[:200])
        found.append(GraphInput(name, dtype, _shape(fields["shape"], name)))
    if not found or len({entry.name for entry in found}) < len(found):
        raise ValueError("inputs must be at least one, with different names")
    return tuple(found)


def _shape(value: Any, name: str) -> tuple[int | str, ...]:
    sizes = _of(value, list, f"shape of {name}")
    return tuple(n if isinstance(n, str) else _count(n, f"shape of {name}") for n in sizes)


def _range(value: Any) -> tuple[int, int | None]:
    limits = _of(value, list, "sizes")
    if len(limits) != 2:
        raise ValueError(f"sizes must have two limits, found {len(limits)}")
    most = limits[1]
    return _count(limits[0], "sizes"), None if most is None else _count(most, "sizes")


def _optional(data: dict[str, Any], name: str, read: Callable[[Any], T]) -> T | None:
    return None if data[name] is None else read(data[name])


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
