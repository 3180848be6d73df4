"""Nested anytime networks and Orthogonalized SGD (Wan, Hoffmann, Lu, Maire, ICML 2020).

>>> import anynest
>>> model = anynest.create_model("width_nested_resnet10")
>>> combiner = anynest.OSGD()
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .multitask import OSGD, NormSGD, WeightedSGD, gradient_stats, list_methods, make_combiner
from .nets import AnytimeNetwork, create_model, list_models, register

if TYPE_CHECKING:
    from .predict.prediction import DeadlineError
    from .predict.predictor import AnytimePredictor
    from .store import load


__all__ = [
    "OSGD",
    "AnytimeNetwork",
    "AnytimePredictor",
    "DeadlineError",
    "NormSGD",
    "WeightedSGD",
    "__version__",
    "create_model",
    "gradient_stats",
    "list_methods",
    "list_models",
    "load",
    "make_combiner",
    "register",
]


def __getattr__(name: str) -> Any:
    """What needs more than torch comes when asked for: networks and combiners do not."""
    if name == "load":
        from .store import load

        return load
    if name in ("AnytimePredictor", "DeadlineError"):
        from . import predict

        return getattr(predict, name)
    raise AttributeError(f"module 'anynest' has no attribute {name!r}")
