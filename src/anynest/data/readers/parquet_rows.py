"""Reads one Parquet file of encoded images and labels. Needs pyarrow, imported on first use."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass
class ParquetRows:
    """The rows of one file.

    Attributes:
        encoded: content of N image files.
        origins: their original names.
        labels: N integers.
        classes: the class names that the file carries; may be empty.
    """

    file: Path
    encoded: list[bytes | None]
    origins: list[str | None]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    label_column: str

    def where(self, row: int) -> str:
        """Name of an image for messages."""
        origin = self.origins[row]
        return f"{self.file} row {row}" + (f" ({origin})" if origin else "")


def read_rows(file: Path, label_column: str | None) -> ParquetRows:
    """Read one file.

    Raises:
        DataError: pyarrow is not installed, or the file is truncated or damaged or has no image
            column (img or image) or no column of integer labels.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            "reading Parquet needs pyarrow, which is not installed: pip install 'anynest[parquet]'"
        ) from None
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            image = _column(file, schema.names, "image", _IMAGE_COLUMNS)
            label = _column(file, schema.names, "label", _LABEL_COLUMNS, label_column)
            kind = schema.field(label).type
            if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
                raise DataError(
                    f"labels must be integers, found {kind} in column {label} of {file}"
                )
            table = parquet.read(columns=[image, label])
            labels = table.column(label)
            if labels.null_count:
                row = labels.is_null().to_pylist().index(True)
                raise DataError(
                    f"labels must be integers, found none in row {row} of column {label} of {file}"
                )
            numbers = labels.cast(pa.int64()).to_numpy()
            encoded, origins = _images(table.column(image), file)
    except DataError:
        raise
    except Exception as error:  # Arrow raises several kinds on damaged bytes
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"cannot read {file} as Parquet, it is truncated or damaged ({reason}): fetch it again"
        ) from None
    classes = _class_names(schema.metadata, label)
    return ParquetRows(file, encoded, origins, numbers, classes, label)


def _column(
    file: Path, names: list[str], kind: str, usual: tuple[str, ...], chosen: str | None = None
) -> str:
    wanted = usual if chosen is None else (chosen,)
    found = [name for name in wanted if name in names]
    if len(found) == 1 or (found and kind == "image"):
        return found[0]
    if found:
        raise DataError(
            f"{file} has several label columns ({', '.join(found)}): choose one with label_column "
            "(--label-column)"
        )
    remedy = "; choose one with label_column (--label-column)" if kind == "label" else ""
    raise DataError(
        f"a Parquet set needs an {kind} column named {' or '.join(wanted)}, "
        f"found {', '.join(names)} in {file}{remedy}"
    )


def _images(column: Any, file: Path) -> tuple[list[bytes | None], list[str | None]]:
    encoded: list[bytes | None] = []
    origins: list[str | None] = []
    for chunk in column.chunks:
        fields = {chunk.type.field(i).name: i for i in range(chunk.type.num_fields)}
        if "bytes" in fields:
            parts = chunk.flatten()  # keeps the nulls of whole rows, unlike .field()
            encoded += parts[fields["bytes"]].to_pylist()
            origins += (
                parts[fields["path"]].to_pylist() if "path" in fields else [None] * len(chunk)
            )
        else:
            encoded += chunk.to_pylist()
            origins += [None] * len(chunk)
    if any(value is not None and not isinstance(value, bytes) for value in encoded):
        raise DataError(
            f"the image column must hold image bytes or {{bytes, path}}, found {column.type} in "
            f"{file}"
        )
    return encoded, origins


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """The names that the Hub writes into a file's metadata; () if absent or unreadable."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
        return tuple(str(name) for name in names) if isinstance(names, list) else ()
    except (KeyError, TypeError, ValueError):
        return ()
