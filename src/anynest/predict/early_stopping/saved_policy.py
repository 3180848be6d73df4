"""A calibrated policy as a JSON file beside the network that it was calibrated for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ..._version import __version__
from ...engines.onnx.manifest import FILE as MANIFEST
from ...nets.pretrained import SUFFIX
from ...store import is_own, local_source, weights_file, write_whole
from ...store.hub import find, is_hub, parse_source
from .calibration import CalibrationReport
from .policies import Confidence, Policy, check_fit

FILE = "policy.json"
FORMAT = "anynest-policy-1"


@dataclass(frozen=True)
class SavedPolicy:
    """Confidence thresholds, what they were calibrated for, and on which images.

    Args:
        thresholds: of the stages 1 to S-1.
        goal: of the calibration, in words.
        revision: of the weights, as ``revision_of`` gives it.
        model: the network's name.
        data: the data set's name.
        split: of it.
        report: of the calibration, as ``CalibrationReport.to_dict`` gives it.
        anynest: the version that wrote it.

    Raises:
        ValueError: thresholds that are no numbers from 0.

    Example:
        ``predictor.predict(x, policy=SavedPolicy.read("runs/a").policy)``
    """

    thresholds: tuple[float, ...]
    goal: str
    revision: str
    model: str
    data: str
    split: str
    report: dict[str, Any] = field(default_factory=dict)
    anynest: str = __version__

    def __post_init__(self) -> None:
        values = Confidence(tuple(self.thresholds)).thresholds
        object.__setattr__(self, "thresholds", values)

    @classmethod
    def of(
        cls,
        policy: Policy,
        report: CalibrationReport,
        *,
        source: str | Path,
        model: str,
        data: str,
        split: str,
    ) -> Self:
        """What ``calibrate`` found for a run, a weights file or an exported folder.

        Raises:
            TypeError: not a ``Confidence`` with a threshold for each stage.
        """
        if not isinstance(policy, Confidence) or not isinstance(policy.thresholds, tuple):
            raise TypeError(
                f"a policy that is saved must be a Confidence of calibrate, found {policy!r}"
            )
        revision = revision_of(source)
        return cls(policy.thresholds, report.note, revision, model, data, split, report.to_dict())

    @property
    def policy(self) -> Confidence:
        """For ``predict`` and ``stream``."""
        return Confidence(self.thresholds)

    def require_fit(self, source: str | Path, num_stages: int, where: object = FILE) -> None:
        """Raise ValueError, naming the file, if it was calibrated for another network."""
        found = revision_of(source)
        if found != self.revision:
            raise ValueError(
                f"{where} must be calibrated for these weights ({found}), found {self.revision}: "
                "run `anynest calibrate` again, or choose no policy"
            )
        try:
            check_fit(self.policy, num_stages, costs_known=True)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the file, atomically (RunError)."""
        write_whole(Path(path), (json.dumps(self.to_json(), indent=2) + "\n").encode())

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file of policies, or the one beside a network.

        Args:
            path: of the file, or a run folder, weights or an exported folder.

        Raises:
            ValueError: it is missing, damaged or of another format.
        """
        named = Path(path)
        beside = not is_own(path) or named.is_dir() or named.suffix == SUFFIX
        file = policy_file(path) if beside else named
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(
                f"cannot read the policy {file}: {error.strerror}; `anynest calibrate` writes one"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} must be JSON: {error}; calibrate again") from error
        try:
            return cls(**_checked(found))
        except ValueError as error:
            raise ValueError(f"{file}: {error}; calibrate again") from error


def policy_file(source: str | Path) -> Path:
    """Where the policy of a run, an exported folder or a weights file lies, if it has one.

    The one of ``hf://OWNER/NAME`` is downloaded.
    """
    path = Path(local_source(source))
    if is_hub(source):
        find(parse_source(source), FILE, cache_is_enough=True)  # beside the weights
    return (path if path.is_dir() else path.parent) / FILE


def revision_of(source: str | Path) -> str:
    """The first digits of a digest of a run's or file's weights, or of an export's manifest."""
    manifest = Path(local_source(source)) / MANIFEST
    with open(manifest if manifest.is_file() else weights_file(source), "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:12]


def _checked(found: Any) -> dict[str, Any]:
    """The arguments of ``SavedPolicy``."""
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise ValueError(f"a policy must have the format {FORMAT}")
    kinds: dict[str, type] = {entry.name: str for entry in fields(SavedPolicy)}
    kinds |= {"thresholds": list, "report": dict}
    if set(found) != set(kinds):
        raise ValueError(f"its keys must be {', '.join(kinds)}, found {', '.join(found)}"[:400])
    for name, kind in kinds.items():
        if type(found[name]) is not kind:
            raise ValueError(f"{name} must be a {kind.__name__}, found {found[name]!r:.60}")
    return {**found, "thresholds": tuple(found["thresholds"])}
