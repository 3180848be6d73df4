"""Ctrl-C and SIGTERM request that a run stops; it does so between two batches, after saving."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, records the first SIGINT or SIGTERM in ``signal_number``.

    A second one has its ordinary effect, and ends the process (checkpoints are atomic). Signals
    reach only the main thread; elsewhere this does nothing.

    Args:
        patient: record every signal, as ranks do that must stop together: torchrun ends those that
            take too long.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _catch(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        if not self.patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
