"""Nested anytime networks and Orthogonalized SGD (Wan, Hoffmann, Lu, Maire, ICML 2020).

>>> import anynest
>>> model = anynest.create_model("width_nested_resnet10")
>>> combiner = anynest.OSGD()

``import anynest`` loads no other package. Every name is imported on first use (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .multitask import (
        OSGD,
        Combiner,
        NormSGD,
        Stats,
        WeightedSGD,
        gradient_stats,
        list_methods,
        make_combiner,
    )
    from .nets import (
        AnytimeNetwork,
        Staged,
        add_exits,
        create_model,
        list_models,
        list_pretrained,
        register,
    )
    from .predict import AnytimePredictor, DeadlineError
    from .sharing import push_to_hub
    from .store import load

__all__ = [
    "OSGD",
    "AnytimeNetwork",
    "AnytimePredictor",
    "Combiner",
    "DeadlineError",
    "NormSGD",
    "Staged",
    "Stats",
    "WeightedSGD",
    "__version__",
    "add_exits",
    "create_model",
    "gradient_stats",
    "list_methods",
    "list_models",
    "list_pretrained",
    "load",
    "make_combiner",
    "push_to_hub",
    "register",
]

_HOMES = {
    "nets": {
        *("AnytimeNetwork", "Staged", "add_exits"),
        *("create_model", "list_models", "list_pretrained", "register"),
    },
    "predict": {"AnytimePredictor", "DeadlineError"},
    "sharing": {"push_to_hub"},
    "store": {"load"},
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}
_PACKAGES = (
    *("data", "engines", "multitask", "nets", "predict", "profiling"),
    *("serving", "sharing", "store", "training"),
)


def __getattr__(name: str) -> Any:
    """Import a public name or subpackage on first use."""
    if name in _PACKAGES:
        value = import_module(f".{name}", __name__)
    elif name in __all__:
        value = getattr(import_module(f".{_LAZY.get(name, 'multitask')}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
