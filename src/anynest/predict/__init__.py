"""Predictions by a deadline: the best answer there is when time is up."""

from .calibration import HeldOut, Report, calibrate, simulate
from .policies import Confidence, Deadline, MultiplyAdds, Policy
from .prediction import DeadlineError, NetworkError, Prediction
from .predictor import AnytimePredictor

__all__ = [
    "AnytimePredictor",
    "Confidence",
    "Deadline",
    "DeadlineError",
    "HeldOut",
    "MultiplyAdds",
    "NetworkError",
    "Policy",
    "Prediction",
    "Report",
    "calibrate",
    "simulate",
]
