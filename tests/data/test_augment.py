"""The one-pass crop against the plain pad, slice, flip."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from anynest.data.augment import Normalize, crop_and_mirror, crop_padding, draw_crops


@pytest.mark.parametrize(("channels", "size", "padding"), [(3, 32, 4), (1, 8, 1), (1, 28, 4)])
def test_equals_pad_slice_flip(channels: int, size: int, padding: int) -> None:
    images = torch.randint(0, 256, (20, channels, size, size), dtype=torch.uint8)
    index = torch.tensor([3, 3, 0, 19, 7, 11, 5])
    crops = torch.from_numpy(draw_crops(1, index.numpy(), padding, True))
    crops[0], crops[1] = torch.tensor([-padding, padding, 1]), torch.tensor([padding, -padding, 0])
    padded = functional.pad(images.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
    expected = []
    for i, (dy, dx, mirrored) in zip(index.tolist(), crops.tolist(), strict=True):
        top, left = dy + padding, dx + padding
        crop = padded[i, :, top : top + size, left : left + size]
        expected.append(crop.flip(2) if mirrored else crop)
    assert torch.equal(crop_and_mirror(images, index, crops), torch.stack(expected))


def test_draws_cover_every_offset_evenly() -> None:
    crops = draw_crops(4, np.arange(27_000), 4, True)
    for axis in (0, 1):
        counts = np.bincount(crops[:, axis] + 4, minlength=9)
        assert len(counts) == 9
        assert abs(counts - 3000).max() < 300
    assert abs(crops[:, 2].mean() - 0.5) < 0.02
    assert draw_crops(4, np.arange(1000), 4, False)[:, 2].sum() == 0


def test_padding_in_proportion() -> None:
    assert [crop_padding(size) for size in (2, 8, 16, 28, 32, 64)] == [1, 1, 2, 4, 4, 8]


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalize(channels_last: bool) -> None:
    images = torch.randint(0, 256, (5, 3, 6, 6), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    found = Normalize(mean, std, torch.device("cpu"), channels_last)(images)
    shape = (1, 3, 1, 1)
    wanted = (images.double() / 255 - torch.tensor(mean).double().view(shape)) / torch.tensor(
        std
    ).double().view(shape)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    assert found.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
