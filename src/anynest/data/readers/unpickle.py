"""Reads an untrusted pickle of plain values and uint8 arrays.

A pickle may name any function and have it called. A CIFAR batch needs only containers and uint8
arrays, so the few names in numpy's own pickles (`numpy.core` or `numpy._core`) resolve to stand-ins
in this module, and any other name is refused. Nothing that the file names is imported or called.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DataError


class _DType:
    """Stands in for numpy.dtype."""

    def __init__(self, kind: str | bytes, *_: object) -> None:
        self.kind = kind.decode("latin1") if isinstance(kind, bytes) else kind

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which do not matter for single bytes."""


class _Array:
    """Stands in for numpy.ndarray; `value` is built from the bytes only."""

    value: np.ndarray[Any, np.dtype[np.uint8]]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, content = state
        self.value = _bytes_array(content, dtype, shape, "F" if column_major else "C")


def _bytes_array(
    content: bytes, dtype: _DType, shape: tuple[int, ...], order: Any
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if dtype.kind not in ("u1", "uint8"):
        raise pickle.UnpicklingError(f"arrays must be of uint8, found {dtype.kind}")
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(content: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.value = _bytes_array(bytes(content), dtype, shape, order)
    return array


def _encode(text: str, _: str = "latin1") -> bytes:
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,  # bytes of Python 3 in protocol 2
}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[(f"{_package}.multiarray", "_reconstruct")] = _reconstruct
    _ALLOWED[(f"{_package}.numeric", "_frombuffer")] = _from_buffer


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which image data do not need"
            ) from None


def read_pickle(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle of plain values and uint8 arrays, its keys as text.

    Raises:
        DataError: it is truncated, damaged, not a dictionary, or names anything but uint8 arrays.
    """
    try:
        value = _Restricted(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}, not a dictionary")
        return {
            key.decode("latin1") if isinstance(key, bytes) else str(key): (
                item.value if isinstance(item, _Array) else item
            )
            for key, item in value.items()
        }
    except Exception as error:  # pickle raises anything on hostile bytes
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"cannot read the pickle {where} ({reason}): it is truncated or altered, fetch it again"
        ) from None
