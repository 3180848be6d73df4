"""Trained weights that come with the package: small networks for examples, tests and a first look.

``NAME.safetensors`` holds the tensors, ``NAME.json`` is its card: data, protocol, method, errors
per stage, the revision that trained it. Reading executes nothing. ``benchmarks/keep_weights.py``
makes both from a finished run.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLDER = Path(__file__).parent
SUFFIX = ".safetensors"
MAX_BYTES, MAX_FILES = 300_000, 3


def list_pretrained() -> list[str]:
    """Names of the trained weights that come with the package, sorted.

    >>> list_pretrained()
    ['cifar10-jpeg75-16px']
    """
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def pretrained_file(name: str) -> Path:
    """The weights file of a name.

    Raises:
        ValueError: There is none; lists those that there are.
    """
    names = list_pretrained()
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"pretrained must be one of {', '.join(names) or '(none come with this package)'}, "
            f"found {name!r}{hint}"
        )
    return FOLDER / f"{name}{SUFFIX}"


def read_card(name: str) -> dict[str, Any]:
    """The card of a name: ``model``, ``arguments``, ``data``, ``protocol``, ``method``, ``error``
    per stage on ``test_images``, ``revision`` and more.

    >>> read_card("cifar10-jpeg75-16px")["model"]
    'width_nested_resnet10'

    Raises:
        ValueError: As ``pretrained_file``.
    """
    card: dict[str, Any] = json.loads(pretrained_file(name).with_suffix(".json").read_text("utf-8"))
    return card


def load_into(model: nn.Module, name: str) -> None:
    """Give a network the weights of a name.

    Raises:
        ValueError: There are no such weights, or they do not fit the network: the first tensor that
            differs, and the network that they fit. The network is then unchanged.
    """
    found = _read(pretrained_file(name))
    expected = model.state_dict()
    for key in [*expected, *found]:
        wanted = list(expected[key].shape) if key in expected else "absent"
        given = list(found[key].shape) if key in found else "absent"
        if wanted != given:
            card = read_card(name)
            raise ValueError(
                f"pretrained {name!r} must fit the network, found {key} {given} in the weights and "
                f"{wanted} in the network: the weights are of {described(card)}"
            )
    model.load_state_dict(found)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file: a header of JSON, then their bytes.

    ``store.load`` reads files of other origin with the safetensors library; this room needs torch
    alone.
    """
    import torch

    kinds = {"F32": torch.float32, "I64": torch.int64}
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for key, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        values = torch.frombuffer(bytearray(data[first:last]), dtype=kinds[entry["dtype"]])
        found[key] = values.reshape(entry["shape"])
    return found


def described(card: dict[str, Any]) -> str:
    """How ``create_model`` makes the network of a card.

    >>> described({"model": "a", "arguments": {"num_classes": 10}})
    "create_model('a', num_classes=10)"
    """
    options = "".join(f", {key}={value!r}" for key, value in card["arguments"].items())
    return f"create_model({card['model']!r}{options})"
