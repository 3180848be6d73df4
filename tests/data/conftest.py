"""Small files of every format, written for each test."""

import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anynest.data.known_sets import CIFAR10
from anynest.data.readers.cifar_versions import CifarVersion


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@cache
def encoded_images(
    count: int, shape: tuple[int, ...], seed: int, kind: str, *options: tuple[str, object]
) -> tuple[bytes, ...]:
    return tuple(encode(p, kind, **dict(options)) for p in random_pixels(count, *shape, seed=seed))


def random_pixels(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def _python_batch(pixels: np.ndarray, labels: list[int], key: str) -> bytes:
    batch = {b"batch_label": b"x", b"data": pixels.reshape(len(pixels), -1), key.encode(): labels}
    return pickle.dumps(batch, protocol=2)


def _binary_batch(pixels: np.ndarray, labels: list[int], label_bytes: int) -> bytes:
    flat = pixels.reshape(len(pixels), -1)
    return b"".join(
        bytes([7] * (label_bytes - 1) + [label]) + row.tobytes()
        for label, row in zip(labels, flat, strict=True)
    )


def cifar_files(version: CifarVersion, per_file: int = 20) -> SimpleNamespace:
    """Contents of the files of one published version, with what they must be read as."""
    classes = version.known.classes
    files, images, labels = {}, [], []
    for i, name in enumerate((*version.train, version.test)):
        pixels = random_pixels(per_file, 3, 32, 32, seed=i)
        numbers = [(i + j) % len(classes) for j in range(per_file)]
        if isinstance(version.label, str):
            files[name] = _python_batch(pixels, numbers, version.label)
        else:
            files[name] = _binary_batch(pixels, numbers, version.label + 1)
        images.append(pixels)
        labels.append(numbers)
    if isinstance(version.label, str):
        encoded = {version.names_key.encode(): [name.encode() for name in classes]}
        files[version.names] = pickle.dumps(encoded, protocol=2)
    else:
        files[version.names] = ("\n".join(classes) + "\n").encode()
    return SimpleNamespace(
        files=files,
        train_images=np.concatenate(images[:-1]),
        train_labels=[label for part in labels[:-1] for label in part],
        test_images=images[-1],
        test_labels=labels[-1],
    )


@pytest.fixture
def make_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Write one version, packed or not, and publish its MD5 sums."""

    def make(
        version: CifarVersion, packed: bool, per_file: int = 20, **replaced: bytes | None
    ) -> SimpleNamespace:
        made = cifar_files(version, per_file)
        made.files.update({k.replace("__", "."): v for k, v in replaced.items()})
        made.files = {name: content for name, content in made.files.items() if content is not None}
        if packed:
            made.path = tmp_path / version.archive
            with tarfile.open(made.path, "w:gz") as archive:
                for name, content in made.files.items():
                    member = tarfile.TarInfo(f"{version.folder}/{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            md5 = hashlib.md5(made.path.read_bytes()).hexdigest()
            monkeypatch.setitem(version.md5, version.archive, md5)
        else:
            made.path = tmp_path / version.folder
            made.path.mkdir()
            for name, content in made.files.items():
                (made.path / name).write_bytes(content)
                if isinstance(version.label, str):
                    monkeypatch.setitem(version.md5, name, hashlib.md5(content).hexdigest())
        return made

    return make


@pytest.fixture
def make_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Write train and test Parquet files; `edit` may change the rows of the training file."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def make(
        *,
        label: str = "label",
        image: str = "img",
        classes: tuple[str, ...] = CIFAR10.classes,
        shape: tuple[int, ...] = (32, 32, 3),
        kind: str = "PNG",
        metadata: bool = True,
        n: tuple[int, ...] = (60, 20),
        edit: Callable[[list[dict[str, object]]], object] | None = None,
        folder: str = "set",
        files: tuple[str, ...] = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        **options: object,
    ) -> Path:
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        for i, (count, file) in enumerate(zip(n, files, strict=True)):
            encoded = encoded_images(count, shape, i, kind, *options.items())
            rows: list[dict[str, object]] = [
                {"bytes": data, "path": f"{j}.img"} for j, data in enumerate(encoded)
            ]
            if edit is not None and i == 0:
                edit(rows)
            columns = {
                image: rows,
                label: pa.array([j % len(classes) for j in range(count)], pa.int64()),
            }
            if label == "fine_label":
                columns["coarse_label"] = [0] * count
            table = pa.table(columns)
            if metadata:
                info = {"info": {"features": {label: {"names": list(classes)}}}}
                table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
            (place / file).parent.mkdir(exist_ok=True)
            pq.write_table(table, place / file)
        return place

    return make


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def make_idx(tmp_path: Path) -> Callable[..., Path]:
    """Write the four IDX files; `replaced` overrides arrays by "train_images" and the like."""

    def make(packed: bool = True, folder: str = "letters", **replaced: np.ndarray) -> Path:
        place = tmp_path / folder
        place.mkdir()
        for i, (split, stem, n) in enumerate((("train", "train", 50), ("test", "t10k", 20))):
            images = replaced.get(f"{split}_images", random_pixels(n, 28, 28, seed=i))
            labels = replaced.get(f"{split}_labels", np.arange(n) % 10)
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                content = idx_bytes(array)
                name = f"{stem}-{kind}-ubyte"
                if packed:
                    (place / f"{name}.gz").write_bytes(gzip.compress(content))
                else:
                    (place / name).write_bytes(content)
        return place

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write an image folder of RGB PNG files."""

    def make(
        splits: tuple[str, ...] = ("train", "val"),
        classes: tuple[str, ...] = ("cat", "dog"),
        n: int = 6,
        shape: tuple[int, ...] = (80, 96, 3),
        folder: str = "pictures",
    ) -> Path:
        place = tmp_path / folder
        for s, split in enumerate(splits):
            for c, name in enumerate(classes):
                (place / split / name).mkdir(parents=True)
                for i, data in enumerate(encoded_images(n, shape, 10 * s + c, "PNG")):
                    (place / split / name / f"{i}.png").write_bytes(data)
        return place

    return make
