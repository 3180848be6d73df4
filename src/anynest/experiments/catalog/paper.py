"""The numbers of Tables 1 to 3 of Wan, Hoffmann, Lu, Maire, ICML 2020, as printed.

Errors in %: mean and standard deviation of three runs in Tables 1 and 2, single runs in Table 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """An error in % as the paper prints it, with its standard deviation if printed."""

    mean: float
    deviation: float | None = None
    source: str = ""


METHODS = ("greedy", "sgd-mean", "osgd", "normsgd", "osgd-norm")

_TABLE_1 = """
depth
9.6 (0.2)   9.8 (0.1)   10.0 (0.3)  10.0 (0.2)  10.7 (0.2)
9.3 (0.3)   8.3 (0.3)   8.4 (0.1)   8.6 (0.4)   8.5 (0.3)
9.2 (0.3)   7.7 (0.3)   7.4 (0.1)   8.1 (0.3)   7.6 (0.1)
9.1 (0.2)   7.2 (0.4)   6.6 (0.1)   8.0 (0.2)   6.9 (0.1)
width
10.2 (0.1)  12.2 (0.2)  12.3 (0.1)  12.3 (0.3)  12.7 (0.1)
9.9 (0.2)   10.1 (0.1)  8.9 (0.2)   10.1 (0.2)  9.6 (0.4)
9.2 (0.2)   9.8 (0.3)   7.3 (0.3)   10.1 (0.2)  7.4 (0.2)
alternating
18.5 (0.1)  31.4 (0.6)  28.3 (0.4)  30.7 (0.4)  28.1 (0.5)
16.5 (0.1)  15.6 (0.2)  14.8 (0.2)  15.5 (0.3)  14.7 (0.4)
15.9 (0.2)  15.5 (0.2)  13.4 (0.3)  15.4 (0.2)  14.1 (0.2)
15.7 (0.4)  10.4 (0.4)  8.6 (0.3)   10.4 (0.2)  9.4 (0.2)
15.6 (0.3)  8.8 (0.3)   6.8 (0.2)   8.9 (0.3)   7.4 (0.2)
simultaneous
18.5 (0.1)  28.0 (0.2)  26.2 (0.1)  29.1 (0.5)  26.7 (0.5)
11.4 (0.1)  15.0 (0.3)  13.1 (0.1)  15.6 (0.5)  14.5 (0.4)
8.6 (0.4)   8.5 (0.3)   6.8 (0.3)   9.0 (0.2)   7.4 (0.1)
"""
_TABLE_2 = """
eann
9.3 (0.1)   11.7 (0.3)  11.6 (0.3)  12.4 (0.1)  12.1 (0.4)
9.2 (0.3)   11.1 (0.1)  10.9 (0.2)  12.0 (0.1)  11.2 (0.1)
8.8 (0.3)   8.5 (0.2)   8.0 (0.1)   9.2 (0.2)   9.0 (0.2)
8.5 (0.3)   6.5 (0.2)   6.4 (0.2)   8.0 (0.1)   7.6 (0.1)
even
10.2 (0.04) 12.7 (0.2)  13.9 (0.1)  12.6 (0.1)  13.5 (0.2)
9.9 (0.3)   10.2 (0.3)  10.7 (0.2)  10.6 (0.1)  10.8 (0.1)
9.9 (0.4)   10.0 (0.1)  8.3 (0.02)  10.5 (0.1)  8.3 (0.01)
9.8 (0.2)   9.9 (0.1)   8.3 (0.1)   10.4 (0.1)  8.3 (0.1)
"""
# SGD top-1, SGD top-5, OSGD top-1, OSGD top-5
_TABLE_3 = """
imagenet-width
36.7 14.7 36.7 14.8
31.5 11.7 31.7 11.7
29.2 10.2 28.3 9.4
imagenet-depth
31.3 11.3 32.9 12.4
28.4 9.7  29.2 10.1
28.0 9.3  27.1 8.9
"""

Key = tuple[str, str, int]  # design, variant, stage from 1


def _rows(text: str) -> Iterator[tuple[str, int, list[str]]]:
    """Design, stage (from 1) and the numbers of each row; a single word begins a design."""
    design, stage = "", 0
    for line in text.strip().splitlines():
        words = line.split()
        if len(words) == 1:
            design, stage = words[0], 0
        else:
            stage += 1
            yield design, stage, words


def _with_deviations(text: str, source: str) -> dict[Key, Printed]:
    return {
        (design, method, stage): Printed(float(mean), float(spread.strip("()")), source)
        for design, stage, words in _rows(text)
        for method, mean, spread in zip(METHODS, words[::2], words[1::2], strict=True)
    }


def _imagenet(columns: tuple[int, int]) -> dict[Key, Printed]:
    return {
        (design, method, stage): Printed(float(words[column]), None, "Table 3")
        for design, stage, words in _rows(_TABLE_3)
        for method, column in zip(("sgd-mean", "osgd"), columns, strict=True)
    }


ERRORS: dict[Key, Printed] = {
    **_with_deviations(_TABLE_1, "Table 1"),
    **_with_deviations(_TABLE_2, "Table 2"),
    **_imagenet((0, 2)),
}
TOP5_ERRORS: dict[Key, Printed] = _imagenet((1, 3))
PRINTED = {"error": ERRORS, "top5_error": TOP5_ERRORS}  # by the field of a record


def printed_error(
    design: str,
    variant: str,
    stage: int,
    independent: int | None = None,
    metric: str = "error",
) -> Printed | None:
    """The paper's error of a cell's stage (from 1); None if not printed.

    >>> printed_error("width", "osgd", 3)
    Printed(mean=7.3, deviation=0.3, source='Table 1')
    """
    return None if independent else PRINTED[metric].get((design, variant, stage))
