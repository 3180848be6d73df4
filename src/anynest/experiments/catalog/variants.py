"""Variants: a method and ``+changes`` to it, by name.

osgd                    Algorithm 2
osgd+priority=1,0,2     another order of the losses
osgd+raw                projects onto the raw gradients, not onto the projected ones
osgd+tensor             projects each parameter tensor separately
osgd+shared-head        one classifier for all stages, applied to each one's features
osgd+shared-norm        one batch norm for all versions of a group's transition
normsgd+C=0.5           the constant as the paper prints it, not calibrated
osgd+lr=0.2             a base learning rate other than the protocol's
"""

import math

from ...multitask import list_methods
from ...training import ConfigError
from .cell import Settings, overlay

CHANGES: dict[str, Settings] = {
    "raw": {"method": {"projection": "raw"}},
    "tensor": {"method": {"scope": "tensor"}},
    "shared-head": {"model": {"options": {"head": "shared"}}},
    "shared-norm": {"model": {"options": {"norm": "shared"}}},
    "C=0.5": {"method": {"C": 0.5}},
}
TITLES = {
    "greedy": "Greedy",
    "sgd-mean": "SGD",
    "sgd-sum": "SGD, sum of losses",
    "sgd-participants": "SGD, mean over participants",
    "osgd": "OSGD",
    "osgd-mean": "OSGD, mean",
    "normsgd": "SGD Norm",
    "osgd-norm": "OSGD Norm",
    "raw": "raw projection",
    "tensor": "projected per tensor",
    "shared-head": "shared head",
    "shared-norm": "shared norms",
    "C=0.5": "C = 1/2 as printed",
}


def settings_of(variant: str) -> Settings:
    """The config sections that a variant sets.

    >>> settings_of("osgd+priority=1,0")
    {'method': {'name': 'osgd', 'priority': [1, 0]}}
    >>> settings_of("osgd+lr=0.2")
    {'method': {'name': 'osgd'}, 'optimizer': {'lr': 0.2}}

    Raises:
        ConfigError: For an unknown method or change, or a rate that is no positive number.
    """
    method, *changes = variant.split("+")
    known = [*list_methods(), "greedy"]
    if method not in known:
        raise ConfigError(f"a variant begins with one of {', '.join(known)}, found {method!r}")
    layers: list[Settings] = [{"method": {"name": method}}]
    for change in changes:
        name, _, value = change.partition("=")
        if name == "priority":
            layers.append({"method": {"priority": [int(part) for part in value.split(",")]}})
        elif name == "lr":
            layers.append({"optimizer": {"lr": rate_of(value)}})
        elif change in CHANGES:
            layers.append(CHANGES[change])
        else:
            raise ConfigError(
                f"a variant's change is one of priority=..., lr=..., {', '.join(CHANGES)}, "
                f"found {change!r}"
            )
    return overlay(*layers)


def rate_of(text: str) -> float:
    """The learning rate of a change.

    Raises:
        ConfigError: Unless it is positive and finite.
    """
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ConfigError(f"a variant's lr must be a positive number, found {text!r}: try lr=0.1")
    return rate


def title_of(variant: str) -> str:
    """A variant as table headings show it.

    >>> title_of("normsgd"), title_of("osgd+priority=2,0,1")
    ('SGD Norm', 'OSGD, order 3-1-2')
    >>> title_of("osgd+lr=0.2")
    'OSGD, rate 0.2'
    """
    method, *changes = variant.split("+")
    parts = [TITLES.get(method, method)]
    for change in changes:
        name, _, value = change.partition("=")
        if name == "priority":
            parts.append("order " + "-".join(str(int(part) + 1) for part in value.split(",")))
        elif name == "lr":
            parts.append(f"rate {value}")
        else:
            parts.append(TITLES.get(change, change))
    return ", ".join(parts)
