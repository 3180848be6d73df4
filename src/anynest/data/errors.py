"""The error of the data package, and the check of its integer arguments."""

import operator


class DataError(ValueError):
    """Data that cannot be used as given: one line with the rule, the value found and a remedy."""


_MAX = (1 << 63) - 1


def check_integer(
    name: str, value: object, low: int, high: int | None = None, unit: str = ""
) -> int:
    """`value` as a Python int, NumPy integers included.

    Raises:
        DataError: it is not an integer, lies outside low..high, or does not fit in 64 bits.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not low <= number <= (_MAX if high is None else high):
        wanted = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise DataError(f"{name} must be an integer {wanted}{unit}, found {value!r}")
    return number
