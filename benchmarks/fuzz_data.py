"""Random image folders and Parquet sets, sound, odd and damaged, against a reading with Pillow.

    python benchmarks/fuzz_data.py --minutes 5 --seed 0

Each case writes a small data set and loads it. The outcome must be one of two: a data set whose
classes, labels and images equal what Pillow alone reads from the same files, or one DataError of
one line. A case is reproduced by its number: ``--first 1234 --cases 1``. Ends with status 1 if any
case fell. The counts at the end say how many cases ended in which way.
"""

import argparse
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, features

from anynest.data import DataError, Dataset, FolderSplit, load, make_loader

SUFFIXES = {
    **{".png": "PNG", ".jpg": "JPEG", ".jfif": "JPEG", ".bmp": "BMP", ".gif": "GIF"},
    **{".webp": "WEBP", ".ppm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".JPEG": "JPEG"},
    **({".avif": "AVIF"} if features.check("avif") else {}),
}
MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK", "I;16", "F", "YCbCr", "LAB", "HSV", "I")
STRANGERS = (
    "notes.txt",
    ".DS_Store",
    "._a.png",
    "Thumbs.db",
    "film.mp4",
    "no_suffix",
    "a.png.part",
)
CLASSES = ("cat", "dog", "émeu", "a b", "[bold]", "0", "-x", "class.png", "CON", "ü" * 60)
Draw = np.random.Generator


def draw_image(draw: Draw, mode: str, size: tuple[int, int]) -> Image.Image:
    """A noisy image of a mode."""
    width, height = size
    pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        depth = int(draw.choice([8, 12, 16]))
        return Image.fromarray(draw.integers(0, 1 << depth, (height, width), dtype=np.uint16))
    if mode == "I":
        high = int(draw.choice([100, 5000, 60_000, 1 << 20]))
        low = int(draw.choice([0, -3]))
        return Image.fromarray(draw.integers(low, high, (height, width), dtype=np.int32))
    if mode == "F":
        return Image.fromarray(draw.random((height, width), dtype=np.float32))
    if mode == "LAB":
        return Image.frombytes("LAB", size, pixels.tobytes())
    return Image.fromarray(pixels).convert(mode)


def encode_image(draw: Draw, kind: str, mode: str, size: tuple[int, int]) -> bytes:
    """The image as a file; modes that a format does not know are written as RGB."""
    for image in (draw_image(draw, mode, size), draw_image(draw, "RGB", size)):
        stream = io.BytesIO()
        try:
            options = {"transparency": 3} if mode == "P" and draw.random() < 0.5 else {}
            image.save(stream, kind, **options)
        except (OSError, ValueError, KeyError, TypeError, SystemError):
            continue
        return stream.getvalue()
    raise AssertionError((kind, mode, size))


def damage(draw: Draw, content: bytes) -> bytes:
    """Cut, changed, emptied, or another thing."""
    way = draw.integers(5)
    if way == 0:
        return content[: draw.integers(len(content) + 1)]
    if way == 1:
        data = bytearray(content)
        for _ in range(draw.integers(1, 12)):
            data[draw.integers(len(data))] = draw.integers(256)
        return bytes(data)
    if way == 2:
        return b""
    if way == 3:
        return draw.bytes(int(draw.integers(1, 400)))
    return content + draw.bytes(20)


def draw_size(draw: Draw, usual: tuple[int, int], odd_sizes: float) -> tuple[int, int]:
    if draw.random() >= odd_sizes:
        return usual
    odd = [(1, 1), (1, 30), (30, 1), (3000, 1), (1, 12_000), (17, 5), (64, 64), (65, 65)]
    return odd[draw.integers(len(odd))]


def draw_file(
    draw: Draw, kind: str, mode: str, usual: tuple[int, int], bad: float, odd_sizes: float = 0.15
) -> bytes:
    if draw.random() < 0.15:
        mode = str(draw.choice(MODES))
    content = encode_image(draw, kind, mode, draw_size(draw, usual, odd_sizes))
    return damage(draw, content) if draw.random() < bad else content


def reference(source: str | bytes, grey: bool) -> np.ndarray | None:
    """Pillow's own reading as [H, W] or [H, W, 3]; None if it fails or has no such conversion."""
    try:
        if isinstance(source, str) and not os.path.isfile(source):
            return None
        with Image.open(source if isinstance(source, str) else io.BytesIO(source)) as image:
            image.load()
            if image.mode == "F":
                return None
            if image.mode == "I" or image.mode.startswith("I;16"):
                values = np.asarray(image).astype(np.int64)
                if values.min() < 0 or values.max() > 65535:
                    return None
                bits = min(b for b in (8, 12, 16) if values.max() < 2**b)
                image = Image.fromarray((values // 2 ** (bits - 8)).astype(np.uint8))
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return np.asarray(image.convert("L" if grey else "RGB"))
    except Exception:
        return None


def centre(pixels: np.ndarray, size: int) -> np.ndarray:
    """ImageNet's evaluation of one image, after the definition: resize the shorter side, crop."""
    image = Image.fromarray(pixels)
    shorter = size if size <= 64 else round(size * 256 / 224)
    scale = shorter / min(image.size)
    wide, high = (max(shorter, round(side * scale)) for side in image.size)
    if (wide, high) != image.size:
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def check_folder(data: Dataset, place: Path, size: int) -> None:
    """Every split against a plain walk of the files and Pillow's reading."""
    assert set(data.classes) == visible_folders(place / "train")
    for split in {id(s): s for s in (data.train, data.validation, data.test)}.values():
        assert isinstance(split, FolderSplit)
        assert split.image_size == size
        made = make_loader(split, 3, train=False, mean=(0.0,) * 3, std=(1 / 255,) * 3)
        batches = list(made.batches(0))
        images = torch.cat([x for x, _ in batches]).round().to(torch.uint8)
        labels = torch.cat([y for _, y in batches])
        kept = [i for i in range(len(split)) if i not in made.skipped_images]
        assert labels.tolist() == split.labels[kept].tolist()
        for image, i in zip(images, kept, strict=True):
            pixels = reference(split.paths[i], grey=False)
            assert pixels is not None, f"read, though Pillow cannot: {split.paths[i]}"
            assert np.array_equal(image.permute(1, 2, 0).numpy(), centre(pixels, size))
            assert data.classes[int(split.labels[i])] in Path(split.paths[i]).parts
        for i in made.skipped_images:
            pixels = reference(split.paths[i], grey=False)
            elongated = pixels is not None and max(pixels.shape[:2]) / min(pixels.shape[:2])
            limit = (Image.MAX_IMAGE_PIXELS or 0) / (2 * size) ** 2
            assert pixels is None or elongated > limit, f"skipped: {split.paths[i]}"
    listed = {path for s in (data.train, data.validation, data.test) for path in s.paths}
    assert listed == visible_files(place)


def visible_folders(place: Path) -> set[str]:
    hidden = ("__MACOSX", "@eaDir", "lost+found")
    names = [p.name for p in place.iterdir() if p.is_dir()]
    return {name for name in names if not name.startswith(".") and name not in hidden}


def visible_files(place: Path) -> set[str]:
    """The image files of every class of every split, found in another way."""
    found = set()
    for split in place.iterdir():
        if split.name not in ("train", "val", "valid", "validation", "test"):
            continue
        for name in visible_folders(split) if split.is_dir() else ():
            for file in (split / name).rglob("*"):
                parts = file.relative_to(split / name).parts
                strange = any(p.startswith(".") or p == "__MACOSX" for p in parts)
                if not strange and file.suffix.lower() in {s.lower() for s in SUFFIXES}:
                    found |= set() if file.is_dir() else {str(file)}
    return found


def folder_case(draw: Draw, place: Path) -> tuple[dict[str, Any], Callable[[Dataset], None]]:
    """Write an image folder; returns options of `load` and the check of its result."""
    count = int(draw.integers(1, 5))
    classes = [str(name) for name in draw.choice(CLASSES, count, replace=False)]
    splits = [["train", "val"], ["train", "test"], ["train", "val", "test"], ["train"], ["val"]]
    names = splits[draw.choice(5, p=[0.5, 0.2, 0.2, 0.05, 0.05])]
    bad = float(draw.choice([0.0, 0.0, 0.1, 0.5]))
    usual = [(20, 20), (32, 32), (70, 80), (100, 90)][draw.integers(4)]
    for split in names:
        kept = classes if draw.random() < 0.95 else classes[1:]
        for name in kept:
            below = place / split / name
            below.mkdir(parents=True)
            for i in range(draw.integers(0 if draw.random() < 0.03 else 1, 6)):
                suffix = str(draw.choice(list(SUFFIXES)))
                at = below / "sub" if draw.random() < 0.1 else below
                at.mkdir(exist_ok=True)
                content = draw_file(draw, SUFFIXES[suffix], "RGB", usual, bad)
                (at / f"{i}{suffix}").write_bytes(content)
            if draw.random() < 0.2:
                (below / str(draw.choice(STRANGERS))).write_bytes(b"x")
            if draw.random() < 0.1:
                odd = below / str(draw.choice(["__MACOSX", ".cache"]))
                odd.mkdir()
                (odd / "a.png").write_bytes(b"x")
            if draw.random() < 0.05:
                os.mkfifo(below / "pipe.png")
            if draw.random() < 0.05:
                (below / "gone.png").symlink_to(below / "nowhere.png")
        if draw.random() < 0.1:
            (place / split / str(draw.choice(["__MACOSX", ".git"]))).mkdir(parents=True)
    size = int(draw.choice([8, 32, 65, 72]))
    options = {
        "image_size": np.int64(size) if draw.random() < 0.2 else size,
        "on_corrupt": "skip" if draw.random() < 0.7 else "raise",
        "holdout": draw.choice(np.array([None, None, 0, 0, 1, 0.3, 50], dtype=object)),
    }
    return options, lambda data: check_folder(data, place, size)


def parquet_case(draw: Draw, place: Path) -> tuple[dict[str, Any], Callable[[Dataset], None]]:
    """Write a Parquet set; returns options of `load` and the check of its result."""
    names = [str(c) for c in draw.choice(CLASSES, int(draw.integers(1, 5)), replace=False)]
    usual = [(8, 8), (32, 32), (9, 12)][draw.choice(3, p=[0.5, 0.4, 0.1])]
    mode = str(draw.choice(["RGB", "RGB", "L", "P", "I;16", "LA"]))
    bad = float(draw.choice([0.0, 0.0, 0.1, 0.6]))
    image = str(draw.choice(["img", "image", "image", "picture"], p=[0.4, 0.3, 0.28, 0.02]))
    label = str(draw.choice(["label", "fine_label", "labels", "kind"], p=[0.6, 0.2, 0.15, 0.05]))
    kinds = ["PNG"] if draw.random() < 0.5 else ["PNG", "JPEG", "BMP", "TIFF"]
    rows: dict[str, list[tuple[bytes | None, int]]] = {}
    others = [["test"], ["validation"], ["val", "test"], []]
    splits = ["train", *others[draw.choice(4, p=[0.5, 0.2, 0.25, 0.05])]]
    below = Path(str(draw.choice([".", "data", "default"])))
    per_folder, shards = draw.random() < 0.3, int(draw.choice([1, 1, 2, 3]))
    hidden = splits[-1] == "test" and draw.random() < 0.1
    fault = draw.random()
    resized = draw.random() < 0.4
    for split in splits:
        for shard in range(shards):
            found: list[tuple[bytes | None, int]] = []
            for _ in range(draw.integers(0 if draw.random() < 0.05 else 1, 6)):
                kind = str(draw.choice(kinds))
                content = draw_file(draw, kind, mode, usual, bad, 0.2 if resized else 0.002)
                number = -1 if hidden and split == "test" else int(draw.integers(len(names)))
                if draw.random() < 0.005:
                    number = int(draw.choice([-1, 99, 1 << 40]))
                found.append((content if draw.random() > bad / 10 else None, number))
            rows.setdefault(split, []).extend(found)
            file = place / below / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            if per_folder:
                file = place / below / split / f"{shard:04d}.parquet"
            write_rows(draw, file, found, image, label, names)
    altered = apply_fault(draw, place, fault, shards)
    options: dict[str, Any] = {"on_corrupt": "skip" if draw.random() < 0.7 else "raise"}
    options["holdout"] = draw.choice(np.array([None, None, 0, 0, 2, 0.3], dtype=object))
    if resized:
        options["image_size"] = int(draw.choice([2, 8, 16]))
    if label == "kind" or draw.random() < 0.05:
        options["label_column"] = label
    if altered:
        return options, lambda data: None
    return options, lambda data: check_parquet(data, rows, options.get("image_size"), hidden)


def write_rows(
    draw: Draw,
    file: Path,
    found: list[tuple[bytes | None, int]],
    image: str,
    label: str,
    names: list[str],
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    encoded = [content for content, _ in found]
    if draw.random() < 0.8:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": c, "path": None} for c in encoded], kind)
    else:
        column = pa.array(encoded, pa.binary())
    table = pa.table({image: column, label: pa.array([n for _, n in found], pa.int64())})
    if draw.random() < 0.02:
        table = table.rename_columns([image, "label" if label != "label" else "labels"])
    if draw.random() < 0.9:
        stated = names if draw.random() < 0.98 else names[::-1]
        info = {"info": {"features": {label: {"names": stated}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, file)


def apply_fault(draw: Draw, place: Path, chance: float, shards: int) -> bool:
    """Sometimes remove, copy, rename or damage one of the files.

    Returns whether the rest may load as another data set: pixels within the file are changed,
    or a whole split, or the last of shards that are numbered without a total, is gone.
    """
    files = sorted(place.rglob("*.parquet"))
    file = files[draw.integers(len(files))]
    if chance < 0.04:
        file.unlink()
    elif chance < 0.08:
        shutil.copy(file, file.with_name(f"{file.stem}-ab12.parquet"))
    elif chance < 0.12:
        content = bytearray(file.read_bytes())
        for _ in range(draw.integers(1, 30)):
            content[draw.integers(len(content))] = draw.integers(256)
        file.write_bytes(content[: draw.integers(len(content))] if chance < 0.1 else content)
    elif chance < 0.16:
        shutil.copy(file, file.with_name("train_old.parquet"))
    elif chance < 0.18:
        file.rename(file.with_name(file.name.replace("0000", "0007")))
    return 0.08 <= chance < 0.12 or (chance < 0.04 and (shards == 1 or file.stem.isdecimal()))


def check_parquet(
    data: Dataset,
    rows: dict[str, list[tuple[bytes | None, int]]],
    image_size: int | None,
    hidden: bool,
) -> None:
    """Every split against Pillow's reading of the same bytes, in the same order."""
    used = {"train": rows["train"]}
    others = {
        name: rows[name] for name in rows if name != "train" and not (hidden and name == "test")
    }
    used["test"] = others.pop("test") if "test" in others else others.pop(next(iter(others)))
    if others:
        used["validation"] = others.popitem()[1]
    grey = data.in_channels == 1
    found = {"train": data.train, "test": data.test, "validation": data.validation}
    for name, expected in used.items():
        read = [(reference(content, grey), n) for content, n in expected if content]
        pixels = [(image, n) for image, n in read if image is not None]
        split = found[name]
        if name == "train" and "validation" not in used and data.validation is not data.test:
            check_divided(data, pixels, image_size)
            continue
        assert split.labels.tolist() == [n for _, n in pixels], name
        for image, (wanted, _) in zip(split.images, pixels, strict=True):
            assert np.array_equal(as_array(image), fit(wanted, image_size)), name


def check_divided(data: Dataset, pixels: list[tuple[np.ndarray, int]], size: int | None) -> None:
    """Train and validation together are the training rows, each once."""
    wanted = Counter((fit(image, size).tobytes(), n) for image, n in pixels)
    found: Counter[tuple[bytes, int]] = Counter()
    for split in (data.train, data.validation):
        for image, n in zip(split.images, split.labels.tolist(), strict=True):
            found[as_array(image).tobytes(), n] += 1
    assert found == wanted


def as_array(image: torch.Tensor) -> np.ndarray:
    pixels = image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def fit(pixels: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or pixels.shape[:2] == (size, size):
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def run_case(seed: int, number: int, root: Path) -> tuple[str, str]:
    """("loaded", "refused" or "fell", the reason)."""
    draw = np.random.default_rng((seed, number))
    kind, make = ("folder", folder_case) if number % 2 else ("parquet", parquet_case)
    place = root / str(number)
    place.mkdir()
    try:
        options, check = make(draw, place)
        try:
            data = load(place, **options)
            assert len(str(data).splitlines()) == 1
            assert data.fingerprint == load(place, **options).fingerprint
            check(data)
        except DataError as error:
            message = str(error).replace(str(root), "")
            assert len(message.splitlines()) == 1
            assert len(message) < 1500
            return "refused", f"{kind}: {re.sub('[0-9]+', 'N', message)[:40]}"
        return "loaded", kind
    except Exception:
        return "fell", f"{kind} {number}:\n{traceback.format_exc(limit=-4)}"
    finally:
        shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, help="stop after so many")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    end, number = time.monotonic() + 60 * args.minutes, args.first
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        while time.monotonic() < end and number - args.first != args.cases:
            outcome, reason = run_case(args.seed, number, Path(root))
            outcomes[outcome] += 1
            if outcome == "fell":
                print(reason, flush=True)
            else:
                reasons[reason] += 1
            number += 1
    for reason, count in reasons.most_common():
        print(f"{count:6d}  {reason}")
    print(f"seed {args.seed}, cases {args.first} to {number - 1}: {dict(outcomes)}")
    sys.exit(outcomes["fell"] > 0)


if __name__ == "__main__":
    main()
