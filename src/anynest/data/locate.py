"""Finds the file or folder of a data set: by name, in the Hugging Face Hub, or by path."""

import difflib
import os
from pathlib import Path

from .errors import DataError

# name: (files or folders to look for, what to do if there is none)
_NAMES = {
    "fashion-mnist": (
        ("fashion-mnist", "FashionMNIST"),
        "apt-get install dataset-fashion-mnist, or give the folder of its four IDX files",
    ),
    "mnist": (("mnist", "MNIST"), "give the folder of its four IDX files"),
    "cifar10": (
        (
            *("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
            *("cifar-10-batches-py", "cifar-10-batches-bin"),
        ),
        "fetch cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and give "
        "its path, or use hub:uoft-cs/cifar10",
    ),
    "cifar100": (
        (
            *("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
            *("cifar-100-python", "cifar-100-binary"),
        ),
        "fetch cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and give "
        "its path, or use hub:uoft-cs/cifar100",
    ),
}
SOURCES = ("digits", *_NAMES)
_HUB = "hub:"
_SYSTEM = "/usr/share/datasets"


def locate(source: str) -> Path:
    """The file or folder of a source other than "digits".

    Raises:
        DataError: an empty or unknown source (lists near matches), a known data set that is not on
            this machine, or a failed download.
    """
    if not source.strip():
        raise DataError(
            f"the data source must not be empty, found {source!r}: "
            "give a name, a path ('.' for the current folder) or hub:OWNER/NAME"
        )
    if source in _NAMES:
        return _find_named(source)
    if source.startswith(_HUB):
        return _download(source.removeprefix(_HUB))
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):
        return path
    near = difflib.get_close_matches(source.lower(), SOURCES, n=3)
    hint = f"; near matches: {', '.join(near)}" if near else ""
    raise DataError(
        f"unknown source {source!r}: no data set of this name and no such file or folder{hint}; "
        f"known: {', '.join(SOURCES)}, {_HUB}OWNER/NAME, or a path"
    )


def _find_named(name: str) -> Path:
    """The place of a known data set in $ANYNEST_DATA or /usr/share/datasets."""
    stems, remedy = _NAMES[name]
    roots = [Path(root) for root in (os.environ.get("ANYNEST_DATA"), _SYSTEM) if root]
    for root in roots:
        for stem in stems:
            if (root / stem).exists():
                return root / stem
    looked = " or ".join(str(root / stems[0]) for root in roots)
    raise DataError(f"{name} is not on this machine (looked for {looked}): {remedy}")


def _download(repository: str) -> Path:
    """The local folder of a Hub data set's Parquet files, kept in the Hub's own cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(
            "downloading from the Hub needs huggingface_hub, which is not installed: "
            "pip install 'anynest[hub]'"
        ) from None
    try:
        return Path(
            snapshot_download(repository, repo_type="dataset", allow_patterns=["*.parquet"])
        )
    except Exception as error:  # errors of several libraries
        reason = next(iter(str(error).splitlines()), "")[:160] or type(error).__name__
        raise DataError(
            f"cannot download {repository!r} from the Hub ({reason}): "
            "check the name and the network, or give the path of a local copy"
        ) from None
