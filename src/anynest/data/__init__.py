"""Image data sets with explicit, fixed splits, and loaders whose every batch is reproducible.

>>> from anynest.data import load, make_loader
>>> str(load("digits"))
'digits: 10 classes, 1293 train, 144 validation, 360 test, 1x8x8'

Attributes are imported on first use: `import anynest.data` does not import torch.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes
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

__getattr__ = lazy_attributes(
    __name__,
    {
        ".dataset": ("AnySplit", "Dataset", "FolderSplit", "Split"),
        ".loader": ("Loader", "make_loader"),
        ".loading": ("load",),
    },
)
