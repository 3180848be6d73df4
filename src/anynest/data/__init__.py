"""Image sets with explicit, fixed splits, and loaders whose every batch can be had again.

>>> from anynest.data import load, make_loader
>>> str(load("digits"))
'digits: 10 classes, 1293 train, 144 validation, 360 test, 1x8x8'
"""

from .dataset import AnySplit, Dataset, FolderSplit, Split
from .errors import DataError
from .load import load
from .loader import Loader, make_loader

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
