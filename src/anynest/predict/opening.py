"""From what a caller names to a session that computes, and to what is known of the network beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..engines.checks import check_threads
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

KNOWN_SIZES = 64  # of images, whose costs are kept

Cost = Callable[[tuple[int, int]], tuple[StageCost, ...]]


@dataclass(eq=False)
class Opened:
    """A session, and what its source tells.

    ``owned``: whether it was opened here, and is to be closed with its predictor; ``device``: where it
    computes; ``cost``: of every stage for (height, width), where the source tells it.
    """

    session: Session
    owned: bool
    device: str
    info: WeightsInfo | None = None
    cost: Cost | None = None
    profile: Profile | None = None
    _costs: dict[tuple[int, int], tuple[int, ...] | None] = field(default_factory=dict)

    def multiply_adds(self, height: int, width: int) -> tuple[int, ...] | None:
        """Of one image up to each stage; None where nobody knows."""
        size = (height, width)
        if size not in self._costs:
            if len(self._costs) >= KNOWN_SIZES:
                self._costs.clear()
            rows: tuple[StageCost, ...] = ()
            if self.cost is not None:
                rows = self.cost(size)
            elif self.profile is not None and size == (self.profile.image_size,) * 2:
                rows = self.profile.costs
            told = len(rows) == self.session.num_stages  # not so for a part of a network
            self._costs[size] = tuple(row.multiply_adds for row in rows) if told else None
        return self._costs[size]

    @property
    def image_size(self) -> int | None:
        """The side of the images that the network is used to, where it is known."""
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
    """Open what ``AnytimePredictor`` is given; its docstring says what the arguments are.

    Raises:
        ValueError: a source or an option that does not fit, one line.
        TypeError: neither a network, nor a path, nor a session; another kind of profile or info.
    """
    if not isinstance(profile, Profile | str | Path | None):
        raise TypeError(f"profile must be a Profile or a path, got {profile!r}")
    if not isinstance(info, WeightsInfo | None):
        raise TypeError(f"info must be a WeightsInfo, got {info!r}")
    read = Profile.read(profile) if isinstance(profile, str | Path) else profile
    if hasattr(source, "begin") and not isinstance(source, AnytimeNetwork | str | Path):
        opened = Opened(source, False, str(device), info, profile=read)
    else:
        found = resolve(source)
        default = "torch" if found.export is None else "onnxruntime"
        chosen, place = choose_backend(found, backend or default, device)
        check_threads(threads)
        needed = found.require_network() if chosen == "torch" else found.network or found.export
        assert needed is not None
        session = open_session(needed, backend=chosen, threads=threads, device=place)
        opened = Opened(session, True, place, info or found.info, _cost_of(found), read)
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
    """The stages' costs of a network, or of the one that an exported folder tells of."""
    if found.network is not None:
        return found.network.cost
    assert found.export is not None
    fields: dict[str, Any] = read_manifest(found.export).architecture
    tuples: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
    }
    plan = build_plan(Architecture(**tuples))
    return lambda size: stage_costs(plan, size)
