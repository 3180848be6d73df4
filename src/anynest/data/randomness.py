"""Stateless random numbers: every draw is a hash of a key and an index.

A draw is splitmix64's finalizer (Steele, Lea, Flood, OOPSLA 2014) of a key (seed, epoch, purpose)
and an index. No state is kept between draws, so a run resumed in mid-epoch, with another number of
workers or of ranks, draws the same numbers for the same image.
"""

import operator

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

UInts = npt.NDArray[np.uint64]


def _mix(value: int) -> int:
    value = (value ^ (value >> 30)) * _FIRST & _MASK
    value = (value ^ (value >> 27)) * _SECOND & _MASK
    return value ^ (value >> 31)


def _mix_array(values: UInts) -> UInts:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    return values ^ (values >> np.uint64(31))


def key(*parts: int) -> int:
    """One 64-bit key from integers such as (seed, epoch, purpose), in this order."""
    state = 0
    for part in parts:
        state = _mix((state + _GOLDEN + (operator.index(part) & _MASK)) & _MASK)
    return state


def hashes(stream: int, index: npt.NDArray[np.int64]) -> UInts:
    """A 64-bit hash of each index under the key `stream`."""
    values = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(stream)
    return _mix_array(_mix_array(values))


def units(stream: int, index: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), ``[len(index), count]``."""
    columns = [hashes(key(stream, column), index) for column in range(count)]
    return (np.stack(columns, 1) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(stream: int, n: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..n-1; equal keys give equal permutations on every machine."""
    return np.argsort(hashes(stream, np.arange(n)), kind="stable")
