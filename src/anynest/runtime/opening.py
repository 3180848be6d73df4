"""From what a caller names to a session that computes, and to what is known of the network beside it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..nets import AnytimeNetwork, StageCost
from ..profiling import Profile
from ..store import WeightsInfo
from .isolated import IsolatedSession
from .session import Session, check_options, open_session
from .source import resolve

KNOWN_SIZES = 64  # of images, whose costs are kept


@dataclass(eq=False)
class Opened:
    """A session, and what its source tells.

    ``owned``: whether it was opened here, and is to be closed with its predictor.
    """

    session: Session
    owned: bool
    info: WeightsInfo | None = None
    network: AnytimeNetwork | None = None
    profile: Profile | None = None
    _costs: dict[tuple[int, int], tuple[int, ...] | None] = field(default_factory=dict)

    def multiply_adds(self, height: int, width: int) -> tuple[int, ...] | None:
        """Of one image up to each stage; None where nobody knows."""
        size = (height, width)
        if size not in self._costs:
            if len(self._costs) >= KNOWN_SIZES:
                self._costs.clear()
            rows: tuple[StageCost, ...] = ()
            if self.network is not None:
                rows = self.network.cost(size)
            elif self.profile is not None and size == (self.profile.image_size,) * 2:
                rows = self.profile.costs
            self._costs[size] = tuple(row.multiply_adds for row in rows) or None
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
    device: str,
    isolated: bool | None,
    info: WeightsInfo | None,
    profile: Profile | str | Path | None,
) -> Opened:
    """Open what ``AnytimePredictor`` is given; its docstring says what the arguments are.

    Raises:
        ValueError: a source or an option that does not fit, one line.
        TypeError: neither a network, nor a path, nor a session.
    """
    read = Profile.read(profile) if isinstance(profile, str | Path) else profile
    if hasattr(source, "begin") and not isinstance(source, AnytimeNetwork | str | Path):
        opened = Opened(source, owned=False, info=info, profile=read)
    else:
        found = resolve(source)
        chosen = backend or ("torch" if found.export is None else "onnxruntime")
        check_options(chosen, threads)
        needed = found.require_network() if chosen == "torch" else found.network or found.export
        assert needed is not None
        if isolated is None:
            isolated = chosen == "torch" and os.name == "posix" and bool(sys.executable)
        make = IsolatedSession.open if isolated else open_session
        session: Session = make(needed, backend=chosen, threads=threads, device=device)
        opened = Opened(session, True, info or found.info, found.network, read)
    if read is not None and read.num_stages != opened.session.num_stages:
        stages = opened.session.num_stages
        if opened.owned:
            opened.session.close()
        raise ValueError(
            f"the profile must be of this network of {stages} stages, found one of "
            f"{read.num_stages}: profile the network again"
        )
    return opened
