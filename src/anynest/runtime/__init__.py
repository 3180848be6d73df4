"""Trained networks at work: sessions that stop and go on between nodes, and predictions by a deadline."""

from .calibrate import HeldOut, Report, calibrate, simulate
from .policy import Confidence, Deadline, MultiplyAdds, Policy
from .prediction import DeadlineError, NetworkError, Prediction
from .predictor import AnytimePredictor
from .session import Evaluation, Session, open_session, stages

__all__ = [
    "AnytimePredictor",
    "Confidence",
    "Deadline",
    "DeadlineError",
    "Evaluation",
    "HeldOut",
    "MultiplyAdds",
    "NetworkError",
    "Policy",
    "Prediction",
    "Report",
    "Session",
    "calibrate",
    "open_session",
    "simulate",
    "stages",
]
