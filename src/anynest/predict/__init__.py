"""Predictions by a deadline: the newest stage that is finished when time is up.

The names are imported on first use (PEP 562), so that options can be read without torch.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes

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

__getattr__ = lazy_attributes(
    __name__,
    {
        ".calibration": ("CalibrationReport", "HeldOut", "calibrate", "simulate"),
        ".policies": ("Confidence", "Deadline", "MultiplyAdds", "Policy"),
        ".prediction": ("DeadlineError", "NetworkError", "Prediction"),
        ".predictor": ("AnytimePredictor",),
    },
)
