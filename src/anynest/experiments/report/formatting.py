"""Text of the report's numbers and names."""

import hashlib

from ..catalog.designs import DESIGNS
from ..catalog.protocols import Protocol

MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int = 1) -> str:
    """
    >>> signed(0.26), signed(-1.5), signed(-0.01)
    ('+0.3', '−1.5', '0.0')
    """
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", MINUS)


def probability(p: float | None) -> str:
    """
    >>> probability(0.0312), probability(2e-7), probability(None)
    ('0.031', '< 0.001', '-')
    """
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def range_text(interval: tuple[float, float] | None, digits: int = 2) -> str:
    """
    >>> range_text((-1.234, 0.5)), range_text(None)
    ('−1.23 to +0.50', '-')
    """
    if interval is None:
        return "-"
    return f"{signed(interval[0], digits)} to {signed(interval[1], digits)}"


def interval_text(interval: tuple[float, float], digits: int = 2) -> str:
    """
    >>> interval_text((-1.234, 0.5))
    '95 % interval −1.23 to +0.50'
    """
    return f"95 % interval {range_text(interval, digits)}"


def count_text(number: float) -> str:
    """
    >>> count_text(455360), count_text(41_960_000), count_text(1.2e9), count_text(12)
    ('455k', '42M', '1.2G', '12')
    >>> count_text(999_600), count_text(999_999_999)
    ('1M', '1G')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def network_title(protocol: Protocol, design: str) -> tuple[str, str]:
    """A design's name in tables and a note: the paper's title for the paper's network alone."""
    own = DESIGNS[design]
    if protocol.has_papers_network(design):
        return own.title, ""
    return f"{own.words}: {protocol.model(own)['name']}", f"stands in for {own.title}"


def stage_names(protocol: Protocol, design: str) -> list[str]:
    """
    >>> from anynest.experiments.catalog.protocols import PAPER
    >>> stage_names(PAPER, "width")
    ['1 w1', '2 w2', '3 w4']
    """
    names = DESIGNS[design].subscripts(protocol.growth(design))
    return [f"{stage} {name}" for stage, name in enumerate(names, start=1)]


def anchor_of(protocol: str, data: str) -> str:
    """A name for a section's links and files, safe for any label."""
    return f"{protocol}-{hashlib.sha256(data.encode()).hexdigest()[:6]}"
