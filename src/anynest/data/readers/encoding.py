"""How images were encoded: what the label of a lossy copy of a data set must say."""

from collections import Counter

from PIL import Image

_LOSSLESS = frozenset(("PNG", "BMP", "TIFF", "PPM", "GIF"))
# Table K.1 of the JPEG standard (ITU-T T.81), row by row: the luminance table that the usual
# encoders scale by their "quality".
_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


def _scaled(quality: int) -> tuple[int, ...]:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(255, max(1, (value * percent + 50) // 100)) for value in _LUMINANCE)


_QUALITIES = {tuple(sorted(_scaled(quality))): quality for quality in range(100, 0, -1)}


def encoding_of(image: Image.Image) -> str:
    """The format of an opened image; of a JPEG with its quality, such as "JPEG-75".

    Quantization tables are compared as sorted values, which differ from quality to quality and do
    not depend on the order in which a version of Pillow returns them. A table of another kind has
    no quality.
    """
    kind = image.format or "unknown"
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    quality = _QUALITIES.get(tuple(sorted(tables.get(0, ())))) if kind == "JPEG" else None
    return kind if quality is None else f"{kind}-{quality}"


def lossy_notes(encodings: Counter[str]) -> tuple[str, ...]:
    """What the label must say: nothing for PNG and other lossless formats.

    >>> lossy_notes(Counter({"JPEG-75": 10})), lossy_notes(Counter({"PNG": 9}))
    (('JPEG-75',), ())
    """
    kinds = sorted(kind for kind in encodings if kind not in _LOSSLESS)
    if not kinds:
        return ()
    named = "/".join(kinds) if len(kinds) <= 3 else f"{kinds[0].partition('-')[0]}, mixed"
    return (named if len(kinds) == len(encodings) else f"partly {named}",)
