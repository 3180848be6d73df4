"""A cell: one training run, known by what decides its outcome.

Its key is a hash of its settings: the network, the images' number and size, the method, the
schedule and the seed. Where the images lie and what computes are no part of it, so the same cell
in two tables, or in a folder that has moved, is one run. Settings that a config leaves at their
defaults are not written down, and options that later versions add change no key.
"""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...training import TrainConfig

Settings = dict[str, dict[str, Any]]
# Settings that cells have in their keys, and the suffix of the method's name in a config.
PROJECTIONS = {"projection": "-raw", "scope": "-tensor"}


def overlay(*layers: Settings) -> Settings:
    """Sections of settings on top of one another; ``options`` are joined, not replaced.

    >>> overlay({"data": {"limit": 10}}, {"data": {"batch_size": 5}, "run": {"seed": 1}})
    {'data': {'limit': 10, 'batch_size': 5}, 'run': {'seed': 1}}
    """
    result: Settings = {}
    for layer in layers:
        for section, values in copy.deepcopy(layer).items():
            into = result.setdefault(section, {})
            if "options" in values and "options" in into:
                values["options"] = {**into["options"], **values["options"]}
            into.update(values)
    return result


@dataclass(frozen=True)
class Cell:
    """One run of an experiment.

    design, independent: which network: a design's name, or the plain network of the size of its
    stage ``independent`` (an Oracle's member). variant: the method and what is changed about it.
    settings: sections of a ``TrainConfig``, without the images' place and the machine.
    """

    protocol: str
    design: str
    variant: str
    seed: int
    settings: Settings = field(hash=False)
    independent: int | None = None

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the settings' SHA-256."""
        text = json.dumps(self.settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """
        >>> Cell("micro", "width", "sgd-mean", 2, {}, independent=1).name
        'oracle-width-1, sgd-mean, seed 2'
        """
        return f"{network_name(self.design, self.independent)}, {self.variant}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """The run folder."""
        stem = f"{network_name(self.design, self.independent)}-{self.variant}-seed{self.seed}"
        return out / self.protocol / f"{stem}-{self.key[:8]}"

    def config(self, source: str, machine: dict[str, Any]) -> TrainConfig:
        """The run's config: ``machine`` are settings of the section ``run`` (device, threads)."""
        place: Settings = {"data": {"source": source}, "run": machine}
        settings = overlay(self.settings, place)
        method = settings.get("method", {})
        for setting, suffix in PROJECTIONS.items():
            if method.pop(setting, None) is not None:
                from ..catalog import projections  # noqa: F401  (registers them; imports torch)

                method["name"] += suffix
        return TrainConfig.from_json(settings)


def network_name(design: str, independent: int | None) -> str:
    """
    >>> network_name("depth", None), network_name("depth", 4)
    ('depth', 'oracle-depth-4')
    """
    return design if independent is None else f"oracle-{design}-{independent}"
