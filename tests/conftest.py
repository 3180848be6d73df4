"""What all tests share: one thread, and torch's generator at the same place."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Small tensors: a second thread costs more than it gives, and on a busy machine much more."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
