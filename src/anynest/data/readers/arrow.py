"""Rows of one Parquet file: encoded images and their labels. Needs pyarrow, imported when used."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass
class Rows:
    """encoded: bytes of N image files; origins: their original names; labels: N whole numbers;
    classes: the names the file carries, or none."""

    file: Path
    encoded: list[bytes | None]
    origins: list[str | None]
    labels: list[int]
    classes: tuple[str, ...]
    label_column: str

    def where(self, row: int) -> str:
        """Name of an image, for messages."""
        origin = self.origins[row]
        return f"{self.file} row {row}" + (f" ({origin})" if origin else "")


def read_rows(file: Path) -> Rows:
    """Read one file.

    Raises:
        DataError: pyarrow is not installed, the file is truncated or damaged, or has no image
            column (img or image) and label column (label or fine_label).
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            "reading Parquet needs pyarrow, which is not installed: pip install 'anynest[parquet]'"
        ) from None
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            image, label = _columns(file, schema)
            table = parquet.read(columns=[image, label])
    except DataError:
        raise
    except Exception as error:  # Arrow raises several kinds on damaged bytes
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"cannot read {file} as Parquet, it is truncated or damaged ({reason}): fetch it again"
        ) from None
    encoded, origins = _images(table.column(image), file)
    labels = table.column(label).to_pylist()
    if any(not isinstance(value, int) for value in labels):
        raise DataError(f"labels must be whole numbers, found others in column {label} of {file}")
    return Rows(file, encoded, origins, labels, _class_names(schema.metadata, label), label)


def _columns(file: Path, schema: Any) -> tuple[str, str]:
    found = []
    for kind, wanted in (("image", _IMAGE_COLUMNS), ("label", _LABEL_COLUMNS)):
        names = [name for name in wanted if name in schema.names]
        if not names:
            raise DataError(
                f"a Parquet set needs an {kind} column named {' or '.join(wanted)}, "
                f"found {', '.join(schema.names)} in {file}"
            )
        found.append(names[0])
    return found[0], found[1]


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
    """The names the Hub writes into the file's metadata; none when they are absent or unreadable."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
