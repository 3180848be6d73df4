"""Loads any data set: by name, by path, or from the Hugging Face Hub."""

from pathlib import Path

from .assemble import RawDataset, assemble
from .dataset import Dataset
from .errors import DataError, check_integer
from .limits import MAX_SIDE, MIN_SIDE
from .locate import locate
from .readers.cifar import folder_version, read_cifar
from .readers.cifar_versions import CIFAR_VERSIONS
from .readers.digits import read_digits
from .readers.folder import (
    is_class_folder,
    is_image_folder,
    read_class_folders,
    read_image_folder,
)
from .readers.idx import find_idx, read_idx_folder
from .readers.parquet import read_parquet
from .readers.parquet_shards import find_shards


def load(
    source: str | Path = "digits",
    *,
    name: str | None = None,
    holdout: int | float | None = None,
    image_size: int | None = None,
    on_corrupt: str = "raise",
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set with explicit, fixed, disjoint splits.

    Args:
        source: "digits" (8x8, part of scikit-learn), "fashion-mnist", "mnist", "cifar10" or
            "cifar100" (looked for in $ANYNEST_DATA and /usr/share/datasets), "hub:OWNER/NAME" (a
            data set on the Hugging Face Hub), or a path: CIFAR's published Python or binary
            archive, packed or unpacked; a folder of Parquet files; a folder of IDX files; a folder
            with train/ and val/ (or test/) and one folder per class in each.
        name: name of the data set instead of the one found; notes such as "partial" are appended
            to it all the same.
        holdout: training images kept for validation: a number, or a fraction below 1; None is a
            tenth. 0 is the paper's protocol: train on all, and `validation` *is* `test`.
        image_size: side to resize to, from 2 to 4096 pixels; None keeps the images' own, and is 224
            for image folders.
        on_corrupt: "raise" on an image that cannot be decoded, or "skip" to leave it out and count
            it.
        label_column: the label column of a Parquet set; None is label, fine_label or labels.
        limit: train on this many images only, always the same ones, every class in proportion;
            the label says so. The other splits stay whole.
        seed: selects the permutations of holdout and limit; leave it alone to compare runs.
            Independent of a run's own seed.

    Raises:
        DataError: the source is unknown, missing or damaged, or an argument is out of range; the
            message is one line.

    Example:
        >>> data = load("digits", holdout=0)
        >>> len(data.train), data.validation is data.test, data.validation.name
        (1437, True, 'test')
    """
    if on_corrupt not in ("raise", "skip"):
        raise DataError(f"on_corrupt must be 'raise' or 'skip', found {on_corrupt!r}")
    if image_size is not None:
        image_size = check_integer("image_size", image_size, MIN_SIDE, MAX_SIDE, " pixels")
    try:
        raw = _read(str(source), image_size, on_corrupt, label_column)
        if name is not None:
            raw.name = name
        return assemble(raw, holdout, image_size, limit, seed)
    except OSError as error:
        where = error.filename if error.filename is not None else source
        raise DataError(f"cannot read {where}: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(
            f"{source} does not fit in memory: give a smaller image_size or an image folder"
        ) from None


def _read(
    source: str, image_size: int | None, on_corrupt: str, label_column: str | None
) -> RawDataset:
    kind, place = ("digits", Path()) if source == "digits" else _recognize(locate(source))
    if kind == "parquet":
        return read_parquet(place, image_size, on_corrupt, label_column)
    if label_column is not None:
        raise DataError(
            f"label_column is for Parquet sets, found {label_column!r} for {source}: leave it out"
        )
    if kind == "digits":
        return read_digits()
    if kind == "idx":
        return read_idx_folder(place)
    if kind == "images":
        return read_image_folder(place, image_size, on_corrupt)
    if kind == "classes":
        return read_class_folders(place, image_size, on_corrupt)
    return read_cifar(place)


def _recognize(path: Path) -> tuple[str, Path]:
    """The format at a path ("cifar", "parquet", "idx", "images", "classes"), and where exactly it lies."""
    if path.is_file():
        if path.suffix == ".parquet":
            inner = path.parent
            return "parquet", inner if find_shards(inner).splits else inner.parent
        return ("idx", path.parent) if "-ubyte" in path.name else ("cifar", path)
    unpacked = [path / version.folder for version in CIFAR_VERSIONS]
    packed = [path / version.archive for version in CIFAR_VERSIONS]
    for within in ([p for p in unpacked if p.is_dir()], [p for p in packed if p.is_file()]):
        if len(within) > 1:
            raise DataError(
                f"{path} holds several data sets ({', '.join(p.name for p in within)}): "
                "give one of them"
            )
        if within:
            return "cifar", within[0]
    if folder_version(path):
        return "cifar", path
    if find_shards(path).splits:
        return "parquet", path
    if find_idx(path):
        return "idx", path
    if is_image_folder(path):
        return "images", path
    if is_class_folder(path):
        return "classes", path
    raise DataError(
        f"{path} has none of the known layouts; looked for: CIFAR's archives or their files "
        "(data_batch_1, data_batch_1.bin, train.bin), train*.parquet or train/0000.parquet, "
        "train-images-idx3-ubyte(.gz), train/ with one folder per class, and one folder per class"
    )
