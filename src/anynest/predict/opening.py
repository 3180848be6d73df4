"""Opens the source of a predictor, and collects what it tells about the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..engines.model_source import Source, resolve
from ..engines.onnx.manifest import read_manifest
from ..engines.open import choose_backend, open_session
from ..engines.session import Session
from ..nets import AnytimeNetwork, StageCost
from ..nets.nested.architecture import Architecture
from ..nets.nested.cost import stage_costs
from ..nets.nested.wiring import build_plan
from ..profiling import Profile
from ..store import WeightsInfo

MAX_SIZES = 64  # image sizes whose costs are cached

Cost = Callable[[tuple[int, int]], tuple[StageCost, ...]]


@dataclass(eq=False)
class Opened:
    """A session, and what its source tells.

    Attributes:
        owned: the session was opened here, and is closed with its predictor.
        way: backend, device and threads, as profiles name them.
        cost: maps (height, width) to the costs of every stage; None where unknown.
    """

    session: Session
    owned: bool
    way: tuple[str, str, int]
    info: WeightsInfo | None = None
    cost: Cost | None = None
    profile: Profile | None = None
    _costs: dict[tuple[int, int], tuple[int, ...] | None] = field(default_factory=dict)

    def multiply_adds(self, height: int, width: int) -> tuple[int, ...] | None:
        """Multiply-adds of one image up to each stage; None where unknown."""
        size = (height, width)
        if size not in self._costs:
            if len(self._costs) >= MAX_SIZES:
                self._costs.clear()
            rows: tuple[StageCost, ...] = ()
            if self.cost is not None:
                rows = self.cost(size)
            elif self.profile is not None and size == (self.profile.image_size,) * 2:
                rows = self.profile.costs
            known = len(rows) == self.session.num_stages  # not so for a part of a network
            self._costs[size] = tuple(row.multiply_adds for row in rows) if known else None
        return self._costs[size]

    @property
    def image_size(self) -> int | None:
        """Side of the network's images in pixels, where known."""
        if self.info is not None:
            return self.info.image_size
        return self.profile.image_size if self.profile is not None else None


def open_source(
    source: AnytimeNetwork | str | Path | Session,
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
    if hasattr(source, "begin") and not isinstance(source, AnytimeNetwork | str | Path):
        way = (source.backend, str(device), count)
        opened = Opened(source, False, way, info, profile=read)
    else:
        found = resolve(source)
        _, place = choose_backend(found, backend, device)
        # with backend=None, a network that cannot be folded falls back to its own modules
        session = open_session(found, backend=backend, threads=threads, device=place)
        way = (session.backend, place, count)
        opened = Opened(session, True, way, info or found.info, _cost_of(found), read)
    if read is not None and read.num_stages != opened.session.num_stages:
        stages = opened.session.num_stages
        if opened.owned:
            opened.session.close()
        raise ValueError(
            f"the profile must be of this network of {stages} stages, found one of "
            f"{read.num_stages}: profile the network again"
        )
    return opened


def _cost_of(found: Source) -> Cost:
    """The costs of a network, or of the architecture in the manifest of an exported folder."""
    if found.network is not None:
        return found.network.cost
    assert found.export is not None
    fields: dict[str, Any] = read_manifest(found.export).architecture
    tuples: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
    }
    plan = build_plan(Architecture(**tuples))
    return lambda size: stage_costs(plan, size)
