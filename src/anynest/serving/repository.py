"""The models of a server, by name and version."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..store import WeightsInfo
from .models import ServedModel
from .protocol.errors import ProtocolError
from .settings import Settings
from .warm_up import QUANTILE, Progress, warm_up

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Entry:
    """A model to serve, and where it comes from."""

    name: str
    version: str
    source: nn.Module | str | Path | Callable[[], ServedModel]
    info: WeightsInfo | None = None


class Repository:
    """The models that a server offers. Changed by the event loop alone.

    Versions are numbers. Models of one name that are added without a version get 1, 2, ...; a
    request that names none gets the largest.
    """

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}
        self._loaded: dict[tuple[str, str], ServedModel] = {}

    def add(
        self,
        source: nn.Module | str | Path | Callable[[], ServedModel],
        name: str | None = None,
        version: str | None = None,
        info: WeightsInfo | None = None,
    ) -> Entry:
        """Offer a model, which is loaded when the server starts.

        Args:
            source: what ``open_session`` takes, or a function that makes the model.
            name: of letters, digits, ``.``, ``_`` and ``-``; None: the name of the file or folder.
            version: a number from 1; None: the next of this name.
            info: classes and preprocessing, where the source does not have them.

        Raises:
            ValueError: no such name or version, or one that there is already.
        """
        if name is None:
            name = Path(source).resolve().name if isinstance(source, str | Path) else "model"
        if not NAME.fullmatch(name):
            raise ValueError(
                "a model's name must be of at most 100 letters, digits, '.', '_' and '-', found "
                f"{name!r}: give it as NAME=PATH"
            )
        if version is None:
            version = str(max((int(one) for one in self.versions(name)), default=0) + 1)
        if not VERSION.fullmatch(version):
            raise ValueError(f"a model's version must be a number from 1, found {version!r}")
        if (name, version) in self.entries:
            raise ValueError(f"models must be given once, found {name} version {version} twice")
        entry = Entry(name, version, source, info)
        self.entries[name, version] = entry
        return entry

    def names(self) -> list[str]:
        """Of all models, in the order of ``add``."""
        return list(dict.fromkeys(name for name, _ in self.entries))

    def versions(self, name: str) -> tuple[str, ...]:
        """Of a model, ascending."""
        return tuple(sorted((one for given, one in self.entries if given == name), key=int))

    def find(self, name: str, version: str | None = None) -> ServedModel | None:
        """A model; None while it is being loaded.

        Raises:
            ProtocolError: 404, there is none.
        """
        versions = self.versions(name)
        if not versions:
            near = difflib.get_close_matches(name, self.names(), n=3) or self.names()
            raise ProtocolError(
                404, f"there is no model {name[:100]!r}; there are {', '.join(near)}"
            )
        if version and version not in versions:
            raise ProtocolError(
                404,
                f"model {name} has no version {version[:20]!r}; it has {', '.join(versions)}",
            )
        return self._loaded.get((name, version or versions[-1]))

    def loaded(self) -> list[ServedModel]:
        """All models that are loaded."""
        return list(self._loaded.values())

    @property
    def complete(self) -> bool:
        """Whether every model is loaded."""
        return len(self._loaded) == len(self.entries)

    def put(self, model: ServedModel) -> ServedModel | None:
        """Offer a loaded model from now on. Returns the one that it replaces."""
        before = self._loaded.get((model.name, model.version))
        self._loaded[model.name, model.version] = model
        return before


def load(
    entry: Entry,
    settings: Settings,
    *,
    quantile: float = QUANTILE,
    progress: Progress | None = None,
) -> ServedModel:
    """Open a model and warm it up, unless a function made it so: some seconds."""
    if callable(entry.source) and not isinstance(entry.source, nn.Module):
        model = entry.source()
    else:
        model = ServedModel.open(
            entry.name,
            entry.version,
            entry.source,
            threads=settings.threads,
            backend=settings.backend,
            device=settings.device,
            info=entry.info,
            saved_policy=settings.saved_policy,
        )
    if model.times is not None:
        return model
    try:
        warm_up(model, settings.max_batch, quantile=quantile, progress=progress)
    except BaseException:
        model.close()
        raise
    return model
