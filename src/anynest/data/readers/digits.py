"""scikit-learn's 1,797 real 8x8 grey digits: the set that needs no download.

They come without official splits; a fixed fifth, stratified by class, is the test split.
"""

import numpy as np
import torch

from .. import randomness
from ..assemble import Raw, stratified

_TEST_KEY = randomness.key(0x5EED, 2)
_TEST_IMAGES = 360


def read_digits() -> Raw:
    """images uint8 [N, 1, 8, 8]: the set's levels 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # here: a second that other sets need not wait

    bunch = load_digits()
    levels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(levels).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test = stratified(labels, _TEST_IMAGES, _TEST_KEY)
    return Raw(
        name="digits",
        classes=tuple(str(name) for name in bunch.target_names),
        train=(images[~test], labels[~test]),
        test=(images[test], labels[test]),
        mirror=False,
    )
