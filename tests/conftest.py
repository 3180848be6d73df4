"""Shared by all tests: signals as by default, one thread, torch's generator in one state, real data."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # in child processes: a pool each is too much


def pytest_configure() -> None:
    """Give the signals that end a process their default effect.

    A shell starts what it runs in the background (``nohup make test &``) with SIGINT ignored, which
    child processes inherit: they could not be interrupted.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Small tensors: a second thread costs more than it gives, and on a busy machine much more."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def real_parquet() -> Path:
    """The folder of CIFAR-10 as JPEG-75 in Parquet."""
    root = os.environ.get("ANYNEST_DATA")
    if not root or not (Path(root) / "cifar10-jpeg75").is_dir():
        pytest.skip("ANYNEST_DATA does not name a folder that holds cifar10-jpeg75/")
    return Path(root) / "cifar10-jpeg75"
