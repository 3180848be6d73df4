"""A cell is one training run, identified by the settings that decide its outcome.

The key is a hash of these settings: network, number and size of the images, method, schedule, seed.
The location of the images and the machine are no part of it, so a cell that two tables share, or a
run folder that was moved, is one run. Settings at their defaults are not written down, so options
added by later versions change no key.
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
    """Merges sections of settings, later layers over earlier ones, and their ``options`` too.

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
    """One training run of an experiment.

    Args:
        protocol: Name of the protocol.
        design: Name of the network design.
        variant: The method and its changes, such as ``osgd+lr=0.2``.
        seed: The run's seed.
        settings: Sections of a ``TrainConfig`` without the images' location and the machine.
        independent: Stage (from 1) whose size a plain network has (a member of the Oracle); None
            for the design itself.
    """

    protocol: str
    design: str
    variant: str
    seed: int
    settings: Settings = field(hash=False)
    independent: int | None = None

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the settings' JSON."""
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
        """The run's config.

        Args:
            source: Location of the images.
            machine: Settings of the section ``run`` (device, threads, ...).
        """
        settings = overlay(self.settings, {"data": {"source": source}, "run": machine})
        method = settings.get("method", {})
        for setting, suffix in PROJECTIONS.items():
            if method.pop(setting, None) is not None:
                from . import projections  # noqa: F401  (registers them; imports torch)

                method["name"] += suffix
        return TrainConfig.from_json(settings)


def network_name(design: str, independent: int | None) -> str:
    """
    >>> network_name("depth", None), network_name("depth", 4)
    ('depth', 'oracle-depth-4')
    """
    return design if independent is None else f"oracle-{design}-{independent}"
