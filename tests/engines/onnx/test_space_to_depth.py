"""Packed pixels: rearranged weights compute the convolution, masks keep the outside at zero."""

import itertools

import numpy as np
import pytest
import torch

from anynest.engines.onnx.nchwc.space_to_depth import MASKED, PixelPacking, mask_row, pack_kernel

PACKINGS = [
    PixelPacking(),
    PixelPacking(2),
    PixelPacking(2, 1),
    PixelPacking(4),
    PixelPacking(4, 1),
]


def pack(x: np.ndarray, packing: PixelPacking) -> np.ndarray:
    """``[B, C, H, W]`` in a packing, zeros in the lanes outside the image."""
    batch, channels, high, wide = x.shape
    positions = packing.positions(wide)
    row = np.zeros((batch, channels, high, positions * packing.pack))
    row[..., packing.shift : packing.shift + wide] = x
    cut = row.reshape(batch, channels, high, positions, packing.pack)
    return cut.transpose(0, 4, 1, 2, 3).reshape(batch, -1, high, positions)


def unpack(x: np.ndarray, packing: PixelPacking, wide: int) -> np.ndarray:
    batch, lanes, high, positions = x.shape
    cut = x.reshape(batch, packing.pack, lanes // packing.pack, high, positions)
    row = cut.transpose(0, 2, 3, 4, 1).reshape(batch, -1, high, positions * packing.pack)
    return row[..., packing.shift : packing.shift + wide]


def convolve(x: np.ndarray, weight: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    return torch.nn.functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), stride=stride
    ).numpy()


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (1, 2), (7, 2)])
def test_a_packed_convolution_is_the_convolution(kernel: int, stride: int) -> None:
    rng = np.random.default_rng(kernel + 10 * stride)
    weight = rng.standard_normal((5, 3, kernel, kernel))
    half = kernel // 2
    refused = 0
    for source, result, wide in itertools.product(PACKINGS, PACKINGS, (8, 9)):
        x = rng.standard_normal((2, 3, 6, wide))
        try:
            packed = pack_kernel(weight, stride, source, result, wide)
        except ValueError:  # only where no kernel exists
            assert stride * result.pack % source.pack or (source.shift and kernel < stride + 1)
            refused += 1
            continue
        frame = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
        expected = convolve(frame, weight, (stride, stride))
        padded = np.pad(pack(x, source), ((0, 0), (0, 0), (half, half), packed.pads))
        found = convolve(padded, packed.weight, (stride, packed.stride))
        assert found.shape[-1] == result.positions(expected.shape[-1])
        np.testing.assert_allclose(unpack(found, result, expected.shape[-1]), expected, atol=1e-12)
    assert refused < 30, "of 50"


def test_a_shifted_result_needs_only_two_positions() -> None:
    weight = np.ones((8, 8, 3, 3))
    assert pack_kernel(weight, 1, PixelPacking(2), PixelPacking(2), 8).weight.shape == (
        16,
        16,
        3,
        3,
    )
    assert pack_kernel(weight, 1, PixelPacking(2), PixelPacking(2, 1), 8).weight.shape == (
        16,
        16,
        3,
        2,
    )
    assert pack_kernel(weight, 1, PixelPacking(2, 1), PixelPacking(2), 8).weight.shape == (
        16,
        16,
        3,
        2,
    )


def test_the_mask_covers_all_lanes_outside_the_image() -> None:
    for packing, wide in itertools.product(PACKINGS, (7, 8)):
        image = pack(np.ones((1, 3, 1, wide)), packing)[0, :, 0]
        np.testing.assert_array_equal(
            mask_row(3, packing, wide), np.where(image == 1, 0, MASKED).astype(np.float32)
        )
