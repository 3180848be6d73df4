"""Pixels side by side: the moved weights compute the convolution, the mask keeps the outside at zero."""

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
    """``[B, C, H, W]`` as the packing has it, zeros in the lanes outside the image."""
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


@pytest.mark.parametrize("wide", [8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (1, 2), (7, 2)])
@pytest.mark.parametrize("result", PACKINGS)
@pytest.mark.parametrize("source", PACKINGS)
def test_a_packed_convolution_is_the_convolution(
    source: PixelPacking, result: PixelPacking, kernel: int, stride: int, wide: int
) -> None:
    rng = np.random.default_rng(kernel + 10 * stride + 100 * wide)
    weight = rng.standard_normal((5, 3, kernel, kernel))
    x = rng.standard_normal((2, 3, 6, wide))
    try:
        packed = pack_kernel(weight, stride, source, result, wide)
    except ValueError:  # only where it must be so
        assert stride * result.pack % source.pack or (source.shift and kernel < stride + 1)
        return
    half = kernel // 2
    frame = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
    expected = convolve(frame, weight, (stride, stride))
    padded = np.pad(pack(x, source), ((0, 0), (0, 0), (half, half), packed.pads))
    found = convolve(padded, packed.weight, (stride, packed.stride))
    assert found.shape[-1] == result.positions(expected.shape[-1])
    np.testing.assert_allclose(unpack(found, result, expected.shape[-1]), expected, atol=1e-12)


def test_a_shifted_result_needs_two_positions_alone() -> None:
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


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("wide", [7, 8])
def test_the_mask_covers_what_is_no_pixel(packing: PixelPacking, wide: int) -> None:
    image = pack(np.ones((1, 3, 1, wide)), packing)[0, :, 0]
    np.testing.assert_array_equal(
        mask_row(3, packing, wide), np.where(image == 1, 0, MASKED).astype(np.float32)
    )
