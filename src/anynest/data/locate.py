"""Where a set known by name may lie on this machine."""

import os
from pathlib import Path

from .errors import DataError

# name: (files or folders looked for, what to do where there is none)
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
NAMES = tuple(_NAMES)
_SYSTEM = "/usr/share/datasets"


def find(name: str) -> Path:
    """The place of a set in $ANYNEST_DATA or /usr/share/datasets.

    Raises:
        DataError: it is in neither; says how to get it.
    """
    stems, remedy = _NAMES[name]
    roots = [Path(root) for root in (os.environ.get("ANYNEST_DATA"), _SYSTEM) if root]
    for root in roots:
        for stem in stems:
            if (root / stem).exists():
                return root / stem
    looked = " or ".join(str(root / stems[0]) for root in roots)
    raise DataError(f"{name} is not on this machine (looked for {looked}): {remedy}")
