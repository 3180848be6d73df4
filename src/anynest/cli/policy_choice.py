"""The early stopping that ``--policy`` and ``--confidence`` choose."""

from pathlib import Path

from ..predict.early_stopping.policies import Confidence
from ..predict.early_stopping.saved_policy import SavedPolicy, policy_file
from ..training import ConfigError

NONE, SAVED = "none", "saved"


def read_policy(choice: str, source: str, num_stages: int) -> tuple[SavedPolicy, Path] | None:
    """The policy that ``--policy`` names and its file; None for ``none``.

    Args:
        choice: ``none``, ``saved`` or a file.
        source: a run's folder, a weights file or an exported folder.
        num_stages: S.

    Raises:
        ConfigError: it is missing, damaged or of another network.
    """
    if choice == NONE:
        return None
    file = policy_file(source) if choice == SAVED else Path(choice)
    try:
        saved = SavedPolicy.read(file)
        saved.require_fit(source, num_stages, file)
    except ValueError as error:
        raise ConfigError(f"{error}, or give --policy none") from error
    return saved, file


def stopping(
    choice: str | None, confidence: float | None, source: str, num_stages: int
) -> tuple[Confidence | None, str]:
    """The policy of a prediction, and one line that says where it is from, if a file has it.

    Args:
        choice: of ``--policy``; None: the saved policy, where there is one.
        confidence: of ``--confidence``, which takes its place.
        source: as in ``read_policy``.
        num_stages: S.
    """
    if confidence is not None:
        return Confidence(confidence), ""
    if choice is None:
        file = policy_file(source)
        choice = str(file) if file.is_file() else NONE
    found = read_policy(choice, source, num_stages)
    if found is None:
        return None, ""
    saved, read = found
    return saved.policy, f"stops early by {read} ({saved.goal}); --policy none: never"
