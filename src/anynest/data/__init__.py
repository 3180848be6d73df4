"""Image data sets with explicit, fixed splits, and loaders whose every batch is reproducible.

>>> from anynest.data import load, make_loader
>>> str(load("digits"))
'digits: 10 classes, 1293 train, 144 validation, 360 test, 1x8x8'

Attributes are imported on first use: `import anynest.data` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:
    from .dataset import AnySplit, Dataset, FolderSplit, Split
    from .loader import Loader, make_loader
    from .loading import load

__all__ = [
    "AnySplit",
    "DataError",
    "Dataset",
    "FolderSplit",
    "Loader",
    "Split",
    "load",
    "make_loader",
]
_MODULES = {"Loader": "loader", "make_loader": "loader", "load": "loading"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES.get(name, 'dataset')}", __name__), name)
