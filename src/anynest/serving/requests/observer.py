"""Who is told what becomes of requests."""

from __future__ import annotations

from typing import Protocol

from ..models import ServedModel
from .answer import Answer


class Observer(Protocol):
    """What is told of every request and step. All calls are made on the event loop."""

    def received(self, model: ServedModel) -> None:
        """A request was accepted."""

    def refused(self, model: ServedModel, reason: str) -> None:
        """A request was not: ``late``, ``full``, ``draining``, ``loading``, ``client``, ``over``."""

    def answered(self, model: ServedModel, answer: Answer, rows: int) -> None:
        """A request got its last answer."""

    def failed(self, model: ServedModel, status: int) -> None:
        """An accepted request got none, but this HTTP status."""

    def left(self, model: ServedModel) -> None:
        """The client of an accepted request has gone."""

    def step(self, model: ServedModel, stage: int, rows: int, seconds: float) -> None:
        """A step was computed."""
