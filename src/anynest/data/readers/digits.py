"""scikit-learn's 1,797 scanned 8x8 grey digits, the data set that needs no download.

They have no official splits; a fixed fifth, stratified by class, is the test split.
"""

import numpy as np
import torch

from .. import randomness
from ..assemble import RawDataset, stratified
from ..dataset import Split

_TEST_KEY = randomness.key(0x5EED, 2)
_TEST_IMAGES = 360


def read_digits() -> RawDataset:
    """Images uint8 ``[N, 1, 8, 8]``: the levels 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # takes a second, which other data sets need not wait

    bunch = load_digits()
    levels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(levels).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test = stratified(labels, _TEST_IMAGES, _TEST_KEY)
    return RawDataset(
        name="digits",
        classes=tuple(str(name) for name in bunch.target_names),
        train=Split(images[~test], labels[~test], "train", mirror=False),
        test=Split(images[test], labels[test], "test", mirror=False),
    )
