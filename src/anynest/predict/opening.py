"""Opens the source of a predictor, and collects what it tells about the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.inputs import InputSpec
from ..engines.model_source import Source, resolve
from ..engines.onnx.manifest import read_manifest
from ..engines.open import choose_backend, open_session
from ..engines.session import Session
from ..nets import StageCost
from ..nets.nested.architecture import Architecture
from ..nets.nested.cost import stage_costs as plan_costs
from ..nets.nested.wiring import build_plan
from ..profiling import Profile
from ..profiling.costs import stage_costs
from ..profiling.input_size import IMAGES, InputSize
from ..store import RunFolderError, WeightsInfo

MAX_SIZES = 64  # sizes of inputs whose costs are cached

Named = Mapping[str, Tensor]
Cost = Callable[[Named], tuple[StageCost, ...]]


@dataclass(eq=False)
class Opened:
    """A session, and what its source tells.

    Attributes:
        owned: the session was opened here, and is closed with its predictor.
        way: backend, device and threads, as profiles name them.
        cost: maps inputs to the costs of every stage; None where unknown.
        example: inputs that the network was given by its maker, by name; None where unknown.
    """

    session: Session
    owned: bool
    way: tuple[str, str, int]
    info: WeightsInfo | None = None
    cost: Cost | None = None
    profile: Profile | None = None
    example: Named | None = None
    _costs: dict[object, tuple[int, ...] | None] = field(default_factory=dict)

    def multiply_adds(self, inputs: Named) -> tuple[int, ...] | None:
        """Multiply-adds of one sample up to each stage; None where unknown."""
        size = InputSize.of(inputs)
        found = self._costs.get(size, ())
        if found == ():  # other threads add sizes, and clear them, meanwhile
            if len(self._costs) >= MAX_SIZES:
                self._costs.clear()
            rows: tuple[StageCost, ...] = ()
            if self.cost is not None:
                rows = self.cost(inputs)
            elif self.profile is not None and self.profile.is_of(size, self.session.in_channels):
                rows = self.profile.costs
            known = len(rows) == self.session.num_stages  # not so for a part of a network
            found = tuple(row.multiply_adds for row in rows) if known else None
            self._costs[size] = found
        return found

    def blank(self) -> Named | None:
        """One sample of inputs like the network's, where they are known."""
        channels = self.session.in_channels
        if channels is None:
            if self.example is not None:
                return {name: value[:1] for name, value in self.example.items()}
            sizes = self.profile.inputs if self.profile is not None else None
            return None if sizes is None else sizes.blank()
        side = self.info.image_size if self.info is not None else None
        if side is None and self.profile is not None:
            side = self.profile.image_size
        return None if side is None else {IMAGES: torch.zeros(1, channels, side, side)}


def open_source(
    source: nn.Module | str | Path | Session,
    *,
    backend: str | None,
    threads: int | None,
    device: str | torch.device,
    info: WeightsInfo | None,
    profile: Profile | str | Path | None,
) -> Opened:
    """Open the source of an ``AnytimePredictor``; its docstring has the arguments.

    Raises:
        ValueError: a source or an option that does not fit, in one line.
        TypeError: a source, profile or info of another type.
    """
    if not isinstance(profile, Profile | str | Path | None):
        raise TypeError(f"profile must be a Profile or a path, found {profile!r}")
    if not isinstance(info, WeightsInfo | None):
        raise TypeError(f"info must be a WeightsInfo, found {info!r}")
    read = Profile.read(profile) if isinstance(profile, str | Path) else profile
    count = threads or torch.get_num_threads()
    if hasattr(source, "begin") and not isinstance(source, nn.Module | str | Path):
        if backend not in (None, source.backend):
            raise ValueError(
                f"backend must be that of the session, {source.backend}, found {backend}: leave "
                "it out, or pass the network in place of a session"
            )
        way = (source.backend, str(device), count)
        opened = Opened(source, False, way, info, profile=read)
    else:
        found = resolve(source)
        _, place = choose_backend(found, backend, device)
        # with backend=None, a network that cannot be folded falls back to its own modules
        session = open_session(found, backend=backend, threads=threads, device=place)
        way = (session.backend, place, count)
        described = info or found.info
        opened = Opened(session, True, way, described, _cost_of(found), read, _example_of(found))
    if read is not None and read.num_stages != opened.session.num_stages:
        stages = opened.session.num_stages
        if opened.owned:
            opened.session.close()
        raise ValueError(
            f"the profile must be of this network of {stages} stages, found one of "
            f"{read.num_stages}: profile the network again"
        )
    return opened


def _cost_of(found: Source) -> Cost | None:
    """The costs of a network, or of the architecture in the manifest of an exported folder."""
    network = found.network
    if network is not None:
        return lambda inputs: stage_costs(network, inputs)
    assert found.export is not None
    fields: dict[str, Any] | None = read_manifest(found.export).architecture
    if fields is None:
        return None
    tuples: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
    }
    try:
        plan = build_plan(Architecture(**tuples))
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{found.export}: {error}; export the network again") from error

    def cost(inputs: Named) -> tuple[StageCost, ...]:
        (images,) = inputs.values()
        return plan_costs(plan, (images.shape[2], images.shape[3]))

    return cost


def _example_of(found: Source) -> Named | None:
    """The inputs that the network was made with, such as ``add_exits``' example."""
    tensors = getattr(found.network, "example_inputs", None)
    if not tensors:
        return None
    return dict(zip(InputSpec.of(found.require_network()).names, tensors, strict=False))
