"""Files that outlive the process: written atomically, read without executing anything."""

from .errors import RunError, RunFolderError
from .files import write_whole
from .weights import WeightsInfo, is_own, load, local_source, read_info, save_weights, weights_file

__all__ = [
    "RunError",
    "RunFolderError",
    "WeightsInfo",
    "is_own",
    "load",
    "local_source",
    "read_info",
    "save_weights",
    "weights_file",
    "write_whole",
]
