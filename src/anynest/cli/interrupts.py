"""Ctrl-C during imports ends the process cleanly."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit with status 130 on Ctrl-C, without raising KeyboardInterrupt.

    Packages that are being imported may swallow the exception or turn it into an ImportError. Does
    nothing outside the main thread, or if SIGINT has another handler than Python's own.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(*_: object) -> None:
    os.write(2, b"anynest: stopped\n")
    os._exit(130)
