"""One door to every set: a name, a path, or hub:OWNER/NAME."""

from pathlib import Path

from anynest.data.assemble import assemble
from anynest.data.dataset import Dataset
from anynest.data.digits import read_digits
from anynest.data.parquet import read_parquet


def load(
    source: str | Path = "digits",
    *,
    name: str | None = None,
    holdout: int | float | None = None,
    image_size: int | None = None,
    on_corrupt: str = "raise",
) -> Dataset:
    """The set that `source` names; more sources follow."""
    if str(source) == "digits":
        raw = read_digits()
    else:
        raw = read_parquet(Path(source), on_corrupt=on_corrupt, image_size=image_size)
    raw.name = name or raw.name
    return assemble(raw, holdout, image_size)
