"""Predictions by a deadline: the newest stage that is finished when time is up.

The names are imported on first use (PEP 562), so that options can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import CalibrationReport, HeldOut, calibrate, simulate
    from .policies import Confidence, Deadline, MultiplyAdds, Policy
    from .prediction import DeadlineError, NetworkError, Prediction
    from .predictor import AnytimePredictor

__all__ = [
    "AnytimePredictor",
    "CalibrationReport",
    "Confidence",
    "Deadline",
    "DeadlineError",
    "HeldOut",
    "MultiplyAdds",
    "NetworkError",
    "Policy",
    "Prediction",
    "calibrate",
    "simulate",
]

_MODULES = {
    "calibration": ("CalibrationReport", "HeldOut", "calibrate", "simulate"),
    "policies": ("Confidence", "Deadline", "MultiplyAdds", "Policy"),
    "prediction": ("DeadlineError", "NetworkError", "Prediction"),
    "predictor": ("AnytimePredictor",),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
