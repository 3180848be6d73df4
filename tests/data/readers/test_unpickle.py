"""The restricted reader of pickles."""

import pickle

import numpy as np
import pytest

from anynest.data import DataError
from anynest.data.readers.unpickle import read_pickle


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_protocol(protocol: int, order: str) -> None:
    array = np.asarray(np.arange(60).reshape(5, 12), np.uint8, order=order)
    found = read_pickle(pickle.dumps({b"data": array, "n": [1, 2]}, protocol), "x")
    assert np.array_equal(found["data"], array)
    assert found["n"] == [1, 2]


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_either_name_of_numpys_core(package: bytes) -> None:
    """Written by hand: numpy 1 and 2 name the same function differently."""
    content = (
        b"}U\x04data"
        + b"c"
        + package
        + b".multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x02K\x03tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x06abcdefts."
    ).replace(b"efts.", b"eftbs.")
    found = read_pickle(content, "x")["data"]
    assert found.tolist() == [[97, 98, 99], [100, 101, 102]]


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(U\x04truetR.",
        b"cbuiltins\neval\n(U\x011tR.",
        b"cnumpy\nload\n(U\x01xtR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"ccollections\nOrderedDict\n)R.",
    ],
)
def test_any_other_name_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="which image data do not need"):
        read_pickle(content, "x")


@pytest.mark.parametrize("content", [b"", b"}", b"\x80\x02}q", b"garbage", b"K\x01.", b"\xff" * 50])
def test_damage_is_one_line(content: bytes) -> None:
    with pytest.raises(DataError, match="cannot read the pickle here") as caught:
        read_pickle(content, "here")
    assert "\n" not in str(caught.value)


def test_bytes_must_fill_the_announced_shape() -> None:
    good = pickle.dumps({b"data": np.zeros((3, 5), np.uint8)}, 2)
    with pytest.raises(DataError, match="cannot read the pickle"):
        read_pickle(good.replace(b"K\x03K\x05", b"K\x04K\x05"), "x")
