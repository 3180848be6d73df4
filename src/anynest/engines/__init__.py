"""Networks ready to run, stage after stage: PyTorch and ONNX Runtime behind one protocol."""

from .session import Evaluation, Session, open_session, stages

__all__ = ["Evaluation", "Session", "open_session", "stages"]
