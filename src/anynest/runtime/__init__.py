"""Trained networks at work: sessions that stop and go on between nodes, and predictions by a deadline."""

from .session import Evaluation, Session, open_session, stages

__all__ = ["Evaluation", "Session", "open_session", "stages"]
