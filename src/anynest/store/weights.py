"""Final weights: a safetensors file whose metadata describes the network.

Reading a file executes nothing: the metadata is JSON, and the model's name is looked up among the
registered ones. ``load(path)`` needs only the file, or the folder of a finished run.
"""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..nets.pretrained import list_pretrained, pretrained_file
from ..nets.registry import create_model, describe, is_nested, list_models
from .errors import RunFolderError
from .files import write_whole
from .hub import download, is_hub, parse_source

if TYPE_CHECKING:
    from torch import nn

FILE = "weights.safetensors"
FORMAT = "anynest-weights-1"
FITS = ("crop", "whole")
MAX_SIDE = 1 << 16  # pixels of an image's side


@dataclass(frozen=True)
class WeightsInfo:
    """The metadata of a weights file: its network and the images that it was trained on.

    Attributes:
        model: the registered name.
        arguments: of ``create_model``.
        classes: their names, in the order of the logits.
        mean: by which pixels from 0 to 1 are normalised, one number per channel.
        std: likewise.
        image_size: pixels of a side.
        data: the data set's name.
        anynest: the version that wrote the file.
        fit: how a picture of another size was fitted: ``crop`` (the shorter side resized, the
            centre cropped; image folders) or ``whole`` (resized; sets in memory).
        module: the Python module that registers the network, where this package does not; told to
            the user, never imported.
    """

    model: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    data: str
    anynest: str
    fit: str = "crop"
    module: str = ""

    def metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file: strings, with JSON for other values."""
        found = {
            "format": FORMAT,
            "model": self.model,
            "arguments": json.dumps(self.arguments),
            "classes": json.dumps(self.classes),
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
            "image_size": json.dumps(self.image_size),
            "data": self.data,
            "anynest": self.anynest,
            "fit": self.fit,
        }
        return found | ({"module": self.module} if self.module else {})


def is_number(x: Any) -> bool:
    """Whether ``x`` is a number that is finite in float32."""
    return type(x) in (int, float) and abs(x) < 3e38


def check_preparation(info: WeightsInfo) -> None:
    """Raise ValueError if no image can be prepared with these values, whose types are right."""
    if not info.std or len(info.mean) != len(info.std):
        raise ValueError(
            "mean and std must have one number a channel, found "
            f"{len(info.mean)} and {len(info.std)}"
        )
    if min(info.std) <= 0:
        raise ValueError(f"std must be above 0, found {list(info.std)}"[:200])
    if not 1 <= info.image_size <= MAX_SIDE:
        raise ValueError(
            f"image_size must be from 1 to {MAX_SIDE} pixels, found {info.image_size}"[:200]
        )
    if info.fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, found {info.fit!r}"[:200])


def save_weights(path: Path, model: nn.Module, info: WeightsInfo) -> None:
    """Write the model's state with ``info``, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    from safetensors.torch import save as to_bytes  # imports torch

    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    write_whole(path, _in_order(to_bytes(state, metadata=info.metadata())))


def _in_order(data: bytes) -> bytes:
    """The same file with sorted metadata, so that the same weights are the same bytes.

    safetensors writes them in a random order.
    """
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def local_source(source: str | Path) -> str | Path:
    """The source itself, a local copy of the weights file of ``hf://OWNER/NAME``, or the file of
    trained weights that come with the package. A file or folder of such a name goes first.

    Raises:
        RunFolderError: a wrong name of a repository, or huggingface_hub is not installed.
        RunError: the file cannot be downloaded.
    """
    if is_hub(source):
        return download(parse_source(source), FILE)
    if str(source) in list_pretrained() and not Path(source).exists():
        return pretrained_file(str(source))
    return source


def is_own(source: str | Path) -> bool:
    """Whether a source is a file or folder of the user's, beside which something may be written;
    False for ``hf://OWNER/NAME`` and for trained weights that come with the package.
    """
    return not is_hub(source) and local_source(source) is source


def weights_file(path: str | Path) -> Path:
    """The weights file of ``path``: itself, the one in a finished run's folder, or a local copy.

    Args:
        path: a file, a run folder, ``hf://OWNER/NAME`` with or without ``@REVISION``, or one of
            ``list_pretrained()``.

    Raises:
        RunFolderError: there is none.
        RunError: it cannot be downloaded.
    """
    path = Path(local_source(path))
    if not path.is_dir():
        if not path.exists():
            raise RunFolderError(
                f"{path} does not exist: give a weights file, a run folder, or weights that come "
                f"with the package ({', '.join(list_pretrained())})"
            )
        return path
    if (path / FILE).is_file():
        return path / FILE
    if (path / "config.json").is_file():
        saved = any((path / "checkpoints").glob("*"))
        remedy = f"`anynest train --resume {path}` first" if saved else "it has saved nothing yet"
        raise RunFolderError(f"{path} holds a run that is not finished: {remedy}")
    if (path / "manifest.json").is_file():
        raise RunFolderError(
            f"{path} holds an export: give the run's folder or its weights, or run the export by "
            "`anynest predict`"
        )
    raise RunFolderError(f"{path} holds no {FILE}: give a weights file or a finished run's folder")


def read_info(path: str | Path) -> WeightsInfo:
    """The metadata of a weights file or run folder.

    Raises:
        RunFolderError: the file is missing or damaged, or another program wrote it.
    """
    file = weights_file(path)
    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(f"{file} is no whole safetensors file: {error}") from error
    return _parse(file, metadata)


def _parse(file: Path, metadata: dict[str, str]) -> WeightsInfo:
    if metadata.get("format") != FORMAT:
        raise RunFolderError(
            f"{file} must be written by anynest (format {FORMAT}), "
            f"found format {metadata.get('format')!r}"
        )
    try:
        info = WeightsInfo(
            model=metadata["model"],
            arguments=json.loads(metadata["arguments"]),
            classes=_list(metadata, "classes"),
            mean=_list(metadata, "mean"),
            std=_list(metadata, "std"),
            image_size=json.loads(metadata["image_size"]),
            data=metadata["data"],
            anynest=metadata["anynest"],
            fit=metadata.get("fit", "crop"),  # absent in the first version's files
            module=metadata.get("module", ""),
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise RunFolderError(f"{file} has damaged metadata: {error!r}; write it again") from error
    sound = (
        isinstance(info.arguments, dict)
        and all(isinstance(name, str) for name in info.classes)
        and all(is_number(x) for x in (*info.mean, *info.std))
        and type(info.image_size) is int
        and info.fit in FITS
    )
    if not sound:
        raise RunFolderError(f"{file} has metadata of the wrong types: write it again")
    try:
        check_preparation(info)
    except ValueError as error:
        raise RunFolderError(f"{file} has unsound metadata: {error}; write it again") from error
    return info


def _list(metadata: dict[str, str], key: str) -> tuple[Any, ...]:
    value = json.loads(metadata[key])
    if not isinstance(value, list):
        raise TypeError(f"{key} must be a list, found {type(value).__name__}")
    return tuple(value)


def load(path: str | Path) -> Any:
    """The trained network in a weights file or a finished run's folder, in eval mode on the CPU.

    Args:
        path: a file, a run folder, or a repository of the Hugging Face Hub: ``hf://OWNER/NAME``, or
            ``hf://OWNER/NAME@REVISION`` for a branch, a tag or a commit; or the name of trained
            weights that come with the package, one of ``anynest.list_pretrained()``.

    Returns:
        What ``create_model`` returns for the name and the arguments in the file. A network that
        ``anynest.register`` made known must be registered before. Where it has no ``num_classes``
        or ``in_channels``, it gets those of the data that it was trained on.

    Raises:
        RunFolderError: the file is missing, damaged, or no weights file of this package.
        RunError: it cannot be downloaded.

    Example:
        >>> model = load("cifar10-jpeg75-16px")  # or "runs/a"
        >>> model.num_stages
        3
    """
    file = weights_file(path)
    info = read_info(file)
    _require_registered(file, info)
    import torch

    try:
        model = None if is_nested(info.model) else create_model(info.model, **info.arguments)
        if model is None:
            with torch.device("meta"):
                expected = create_model(info.model, **info.arguments).state_dict()
        else:
            expected = model.state_dict()
        _check_shapes(file, {name: list(tensor.shape) for name, tensor in expected.items()})
        if model is None:
            model = create_model(info.model, **info.arguments)
        with safe_open(file, framework="pt") as opened:
            model.load_state_dict({name: opened.get_tensor(name) for name in expected})
        _agree_on_counts(file, info, model)
    except RunFolderError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunFolderError(f"{file} does not build {info.model}: {reason}") from error
    return model.eval()


def _require_registered(file: Path, info: WeightsInfo) -> None:
    """RunFolderError where no factory of the network's name is registered."""
    if info.model in list_models():
        return
    if not info.model:
        raise RunFolderError(
            f"{file} holds the weights of a network that no registered function made: build it "
            "yourself and load the tensors, or train it through @anynest.register"
        )
    is_module = all(part.isidentifier() for part in info.module.split("."))
    if is_module and info.module != "__main__":
        raise RunFolderError(
            f"{file} does not build {info.model}: there is no model named {info.model!r}; the "
            f"module {info.module} registered it when it was trained: import that first "
            f"(--import {info.module} on the command line)"
        )
    try:
        describe(info.model)
    except ValueError as error:
        raise RunFolderError(f"{file} does not build {info.model}: {error}") from error


def _check_shapes(file: Path, expected: dict[str, list[int]]) -> None:
    """Compare the tensors' shapes with the network's before memory is allocated."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    found = {key: value["shape"] for key, value in header.items() if key != "__metadata__"}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise RunFolderError(
                f"{file} does not fit its own network: {name} is {found.get(name, 'missing')} "
                f"in the file, {expected.get(name, 'absent')} in the network"
            )


def _agree_on_counts(file: Path, info: WeightsInfo, model: nn.Module) -> None:
    """Compare the numbers of channels and classes with the network's, or tell them to it."""
    for what, found, key in (
        ("mean and std", len(info.mean), "in_channels"),
        ("classes", len(info.classes), "num_classes"),
    ):
        wanted = getattr(model, key, None)
        if wanted is None:
            with contextlib.suppress(AttributeError):  # a property
                setattr(model, key, found)
        elif isinstance(wanted, int) and found != wanted:
            raise RunFolderError(
                f"{file} does not fit its own network: {what} must be {wanted}, found {found}; "
                "write it again"
            )
