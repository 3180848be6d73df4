"""One pass over the example: which modules run, in which order, and what they return."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from .inputs import Inputs
from .taps import Point
from .values import Read, tensor_of, tensors

_LISTED = 16  # names in a message


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        path: the module's first name in the body.
        number: which call of it, from 0.
        output: what it returned.
        batch: whether that is, or holds, a tensor with the batch as dimension 0.
        versions: the tensors in it, and how often each had been written to.
    """

    path: str
    number: int
    output: Any
    batch: bool
    versions: tuple[tuple[Tensor, int], ...]


def record(body: nn.Module, inputs: Inputs) -> list[Call]:
    """The calls of the body's modules, in the order in which they end."""
    calls: list[Call] = []
    counts: dict[str, int] = {}
    rows = len(inputs.example[0])

    def hook(path: str) -> Any:
        def called(module: nn.Module, args: Any, output: Any) -> None:
            number = counts.get(path, 0)
            counts[path] = number + 1
            held = [output] if isinstance(output, Tensor) else [t for _, t in tensors(output)]
            versions = tuple((tensor, tensor._version) for tensor in held)
            calls.append(Call(path, number, output, _has_batch(output, rows), versions))

        return called

    handles = [
        module.register_forward_hook(hook(path)) for path, module in body.named_modules() if path
    ]
    # these write in training mode alone
    writes = [m for m in body.modules() if isinstance(m, _DropoutNd) and m.inplace]
    try:
        with torch.random.fork_rng(devices=()):
            for module in writes:
                module.training = True
            inputs.call(body, [tensor.clone() for tensor in inputs.example])
    finally:
        for module in writes:
            module.training = False
        for handle in handles:
            handle.remove()
    return calls


def _has_batch(output: Any, rows: int) -> bool:
    try:
        tensor = tensor_of(output, None, "", first=True)
    except ValueError:
        return False
    return tensor.dim() > 0 and tensor.shape[0] == rows


def find_points(body: nn.Module, calls: Sequence[Call], reads: Mapping[str, Read]) -> list[Point]:
    """Where exits read, in the order of execution.

    Args:
        calls: of one pass.
        reads: the exits' names, ``"module"`` (its last call) or ``"module#n"`` (call n, from 0),
            and which tensor of the output each reads.

    Raises:
        ValueError: an unknown name, a module or a call that does not run, or the same call twice.
    """
    modules = dict(body.named_modules(remove_duplicate=False))
    first = {id(module): path for path, module in body.named_modules()}
    found: list[tuple[int, Point]] = []
    for name, read in reads.items():
        path, _, number = name.partition("#")
        if path not in modules or not path:
            raise ValueError(_unknown(path, list(modules), calls))
        path = first[id(modules[path])]
        made = [place for place, call in enumerate(calls) if call.path == path]
        if not made:
            raise ValueError(
                f"{path!r} must run when the body is called in eval mode, found no call of it; "
                f"those that run are {_in_order(calls)}"
            )
        if number and (not number.isdecimal() or int(number) >= len(made)):
            raise ValueError(
                f"a call of {path!r} must be one of #0 to #{len(made) - 1}, found {name!r}"
            )
        call = int(number) if number else len(made) - 1
        point = Point(name, path, call, len(made), read)
        found.append((made[call], point))
    found.sort(key=lambda pair: pair[0])
    for (place, one), (other, two) in pairwise(found):
        if place == other:
            raise ValueError(f"exits must be at different calls, found {one.name!r}, {two.name!r}")
    return [point for _, point in found]


def _unknown(path: str, modules: list[str], calls: Sequence[Call]) -> str:
    near = difflib.get_close_matches(path, modules, n=4, cutoff=0.5)
    hint = f"; near matches: {', '.join(near)}" if near else ""
    return (
        f"exits must be after modules of the body, found {path!r}{hint}; "
        f"in the order of calls: {_in_order(calls)}"
    )


def _in_order(calls: Sequence[Call]) -> str:
    """The outermost modules in the order of their calls; those within them if they are few."""
    names = list(dict.fromkeys(call.path for call in calls))
    for depth in (3, 2, 1):
        short = [name for name in names if name.count(".") < depth]
        if len(short) <= _LISTED:
            return ", ".join(short)
    short = [name for name in names if "." not in name]
    return ", ".join([*short[:_LISTED], "..."])


def check_batch(calls: Sequence[Call], point: Point, activation: Tensor, rows: int) -> None:
    """Refuse an activation whose dimension 0 is not the batch.

    Raises:
        ValueError: naming the nearest modules that have the batch there.
    """
    if activation.dim() and activation.shape[0] == rows:
        return
    places = [n for n, call in enumerate(calls) if (call.path, call.number) == _key(point)]
    here = places[0]
    before = [call.path for call in reversed(calls[:here]) if call.batch][:1]
    after = [call.path for call in calls[here + 1 :] if call.batch][:1]
    near = ", ".join(map(repr, [*before, *after])) or "none"
    raise ValueError(
        f"the activation of {point.name!r} must have the batch as dimension 0, found "
        f"{list(activation.shape)} for a batch of {rows}; the nearest places that have: {near}"
    )


def _key(point: Point) -> tuple[str, int]:
    return point.path, point.call


def activation_of(calls: Sequence[Call], point: Point) -> Tensor:
    """What an exit reads, in shape and type; its values may have been written to since."""
    (call,) = [call for call in calls if (call.path, call.number) == _key(point)]
    return tensor_of(call.output, point.read, f"the output of {point.name!r}", first=True)


def is_written(calls: Sequence[Call], point: Point, head: nn.Module) -> bool:
    """Whether the body, after the exit, or the head writes to the activation in place."""
    (call,) = [call for call in calls if (call.path, call.number) == _key(point)]
    activation = activation_of(calls, point)
    version = next((v for tensor, v in call.versions if tensor is activation), None)
    if version != activation._version:  # a function's result is not known: copied, too
        return True
    if any(getattr(module, "inplace", False) for module in head.modules()):
        return True
    trial = activation.clone()
    head(trial)
    return trial._version > 0
