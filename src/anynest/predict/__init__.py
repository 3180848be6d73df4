"""Predictions by a deadline: the newest stage that is finished when time is up.

The names are imported on first use (PEP 562), so that options can be read without torch.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes

if TYPE_CHECKING:
    from .early_stopping.calibration import CalibrationReport, HeldOut, calibrate, simulate
    from .early_stopping.policies import Confidence, Deadline, MultiplyAdds, Policy
    from .early_stopping.saved_policy import SavedPolicy
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
    "SavedPolicy",
    "calibrate",
    "simulate",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        ".early_stopping.calibration": ("CalibrationReport", "HeldOut", "calibrate", "simulate"),
        ".early_stopping.policies": ("Confidence", "Deadline", "MultiplyAdds", "Policy"),
        ".early_stopping.saved_policy": ("SavedPolicy",),
        ".prediction": ("DeadlineError", "NetworkError", "Prediction"),
        ".predictor": ("AnytimePredictor",),
    },
)
