"""Where a network is run: the backend and device of a command's flags."""

from __future__ import annotations

import torch

from ..engines.model_source import Source
from ..engines.open import choose_backend
from ..training import ConfigError


def find_backend(
    source: Source, backend: str | None, device: str | torch.device
) -> tuple[str, str]:
    """As ``choose_backend``; ConfigError where the backend cannot run the network."""
    try:
        return choose_backend(source, backend, device)
    except TypeError as error:
        raise ConfigError(str(error)) from error
