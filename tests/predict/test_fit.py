"""A predictor fits pictures of another size as the weights say its evaluation did."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anynest.data.readers.image_reader import ImageFileReader
from anynest.predict.inputs import ImageReader
from anynest.store import WeightsInfo


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_as_the_reader_of_that_fit(fit: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (30, 20, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    info = WeightsInfo("m", {}, ("a", "b"), mean, std, 8, "d", "0", fit)
    expected = ImageFileReader(8, mean, std, fit)(str(tmp_path / "a.png"))
    for given in (tmp_path / "a.png", picture, np.array(picture)):
        found, single = ImageReader(3, info)(given)
        assert single
        assert torch.equal(found, expected)
    other = ImageFileReader(8, mean, std, "whole" if fit == "crop" else "crop")
    assert not torch.equal(other(str(tmp_path / "a.png")), expected)
