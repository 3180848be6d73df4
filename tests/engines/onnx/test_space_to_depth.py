"""Pixels side by side: the moved weights compute the convolution, the mask keeps the outside at zero."""

import numpy as np
import pytest
import torch

from anynest.engines.onnx.nchwc.space_to_depth import MASKED, Layout, mask_row, packed_window

LAYOUTS = [Layout(), Layout(2), Layout(2, 1), Layout(4), Layout(4, 1)]


def pack(x: np.ndarray, layout: Layout) -> np.ndarray:
    """``[B, C, H, W]`` as the layout has it, zeros in the lanes outside the image."""
    batch, channels, high, wide = x.shape
    positions = layout.positions(wide)
    row = np.zeros((batch, channels, high, positions * layout.pack))
    row[..., layout.shift : layout.shift + wide] = x
    cut = row.reshape(batch, channels, high, positions, layout.pack)
    return cut.transpose(0, 4, 1, 2, 3).reshape(batch, -1, high, positions)


def unpack(x: np.ndarray, layout: Layout, wide: int) -> np.ndarray:
    batch, lanes, high, positions = x.shape
    cut = x.reshape(batch, layout.pack, lanes // layout.pack, high, positions)
    row = cut.transpose(0, 2, 3, 4, 1).reshape(batch, -1, high, positions * layout.pack)
    return row[..., layout.shift : layout.shift + wide]


def convolve(x: np.ndarray, weight: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    return torch.nn.functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), stride=stride
    ).numpy()


@pytest.mark.parametrize("wide", [8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (1, 2), (7, 2)])
@pytest.mark.parametrize("result", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_a_packed_convolution_is_the_convolution(
    source: Layout, result: Layout, kernel: int, stride: int, wide: int
) -> None:
    rng = np.random.default_rng(kernel + 10 * stride + 100 * wide)
    weight = rng.standard_normal((5, 3, kernel, kernel))
    x = rng.standard_normal((2, 3, 6, wide))
    try:
        window = packed_window(weight, stride, source, result, wide)
    except ValueError:  # only where it must be so
        assert stride * result.pack % source.pack or (source.shift and kernel < stride + 1)
        return
    half = kernel // 2
    frame = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
    expected = convolve(frame, weight, (stride, stride))
    padded = np.pad(pack(x, source), ((0, 0), (0, 0), (half, half), window.pads))
    found = convolve(padded, window.weight, (stride, window.stride))
    assert found.shape[-1] == result.positions(expected.shape[-1])
    np.testing.assert_allclose(unpack(found, result, expected.shape[-1]), expected, atol=1e-12)


def test_a_shifted_result_needs_two_positions_alone() -> None:
    weight = np.ones((8, 8, 3, 3))
    assert packed_window(weight, 1, Layout(2), Layout(2), 8).weight.shape == (16, 16, 3, 3)
    assert packed_window(weight, 1, Layout(2), Layout(2, 1), 8).weight.shape == (16, 16, 3, 2)
    assert packed_window(weight, 1, Layout(2, 1), Layout(2), 8).weight.shape == (16, 16, 3, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wide", [7, 8])
def test_the_mask_covers_what_is_no_pixel(layout: Layout, wide: int) -> None:
    image = pack(np.ones((1, 3, 1, wide)), layout)[0, :, 0]
    np.testing.assert_array_equal(
        mask_row(3, layout, wide), np.where(image == 1, 0, MASKED).astype(np.float32)
    )
