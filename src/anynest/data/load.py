"""One door to every set: a name, a path, or hub:OWNER/NAME."""

import difflib
from pathlib import Path

from . import locate as places
from .assemble import Raw, assemble
from .dataset import Dataset
from .errors import DataError
from .readers import cifar
from .readers.cifar_layouts import LAYOUTS
from .readers.digits import read_digits
from .readers.folder import is_image_folder, read_image_folder
from .readers.hub import download
from .readers.idx import find_idx, read_idx_folder
from .readers.parquet import find_shards, read_parquet

SOURCES = ("digits", *places.NAMES)
_HUB = "hub:"


def load(
    source: str | Path = "digits",
    *,
    name: str | None = None,
    holdout: int | float | None = None,
    image_size: int | None = None,
    on_corrupt: str = "raise",
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a set with explicit, fixed, disjoint splits.

    Args:
        source: "digits" (8x8, comes with scikit-learn), "fashion-mnist", "mnist", "cifar10" or
            "cifar100" (looked for in $ANYNEST_DATA and /usr/share/datasets), "hub:OWNER/NAME" (a
            data set on the Hugging Face Hub), or a path: CIFAR's published Python or binary
            archive, packed or not; a folder with train*.parquet and test*.parquet; a folder of IDX
            files; a folder with train/ and val/ (or test/) and one folder per class in each.
        name: what to call the set, in place of the name found; how lossy it is is added all the
            same.
        holdout: training images kept for validation: a number, or a fraction below 1; None is a
            tenth. 0 is the paper's protocol: train on all, and `validation` *is* `test`.
        image_size: side to resize to; None keeps the images' own, and is 224 for image folders.
        on_corrupt: "raise" on an undecodable image, or "skip" to leave such out and count them.
        limit: train on this many images only, always the same ones, every class in proportion;
            the label says so. The other splits stay whole.
        seed: chooses the permutations of the holdout and the limit; leave it alone to compare
            runs. A run's own seed has no part in it.

    Raises:
        DataError: the source is unknown or missing, or its content is not as it must be; the
            message is one line.

    Example:
        >>> data = load("digits", holdout=0)
        >>> len(data.train), data.validation is data.test, data.validation.name
        (1437, True, 'test')
    """
    if on_corrupt not in ("raise", "skip"):
        raise DataError(f"on_corrupt must be 'raise' or 'skip', found {on_corrupt!r}")
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, found {image_size}")
    if str(source) == "digits":
        raw = read_digits()
    else:
        kind, place = _recognise(_locate(str(source)))
        if kind == "images":
            return read_image_folder(
                place,
                name=name,
                holdout=holdout,
                image_size=image_size,
                on_corrupt=on_corrupt,
                limit=limit,
                seed=seed,
            )
        raw = _read(kind, place, on_corrupt, image_size)
    raw.name = name or raw.name
    return assemble(raw, holdout, image_size, seed, limit)


def _read(kind: str, place: Path, on_corrupt: str, image_size: int | None) -> Raw:
    if kind == "parquet":
        return read_parquet(place, on_corrupt=on_corrupt, image_size=image_size)
    if kind == "idx":
        return read_idx_folder(place)
    layout = cifar.folder_layout(place) if place.is_dir() else None
    return cifar.read_folder(place, layout) if layout else cifar.read_archive(place)


def _locate(source: str) -> Path:
    if source in places.NAMES:
        return places.find(source)
    if source.startswith(_HUB):
        return download(source.removeprefix(_HUB))
    path = Path(source).expanduser()
    if path.exists():
        return path
    near = difflib.get_close_matches(source.lower(), SOURCES, n=3)
    hint = f"; near matches: {', '.join(near)}" if near else ""
    raise DataError(
        f"unknown source {source!r}: no set of this name and no such file or folder{hint}; "
        f"known: {', '.join(SOURCES)}, {_HUB}OWNER/NAME, or a path"
    )


def _recognise(path: Path) -> tuple[str, Path]:
    """What lies at a path: "cifar", "parquet", "idx" or "images", and where exactly."""
    if path.is_file():
        if path.suffix == ".parquet" or "-ubyte" in path.name:
            return _recognise(path.parent)
        return "cifar", path
    unpacked, packed = zip(*((layout.folder, layout.archive) for layout in LAYOUTS), strict=True)
    for names in (unpacked, packed):
        within = [path / name for name in names if (path / name).exists()]
        if len(within) > 1:
            raise DataError(
                f"{path} holds several sets ({', '.join(p.name for p in within)}): give one of them"
            )
        if within:
            return "cifar", within[0]
    if cifar.folder_layout(path):
        return "cifar", path
    if find_shards(path):
        return "parquet", path
    if find_idx(path):
        return "idx", path
    if is_image_folder(path):
        return "images", path
    raise DataError(
        f"{path} has none of the known layouts; looked for: CIFAR's archives or their files "
        "(data_batch_1, data_batch_1.bin, train.bin), train*.parquet, train-images-idx3-ubyte(.gz),"
        " and train/ with one folder per class"
    )
