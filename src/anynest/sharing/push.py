"""Sharing a trained network on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from ..predict.early_stopping.saved_policy import FILE as POLICY
from ..predict.early_stopping.saved_policy import policy_file
from ..store import local_source, weights_file
from ..store.hub import HubSource, check_repository, find, upload
from ..store.weights import FILE
from .card import model_card

CARD = "README.md"
MOST = 1 << 20  # characters of an earlier card that are read


def push_to_hub(
    source: str | Path, repository: str, *, private: bool = False, message: str = ""
) -> str:
    """Upload a trained network and its model card as one commit.

    The repository gets ``weights.safetensors`` and ``README.md``, and ``policy.json`` where
    ``anynest calibrate`` has saved one; nothing else of the run is uploaded. An earlier policy,
    which was for other weights, is removed. What an earlier card says between its ``---`` lines,
    such as the licence, is kept; the rest is written anew. Needs ``huggingface_hub`` (``pip install
    'anynest[hub]'``) and its login.

    Args:
        source: a finished run's folder or a weights file.
        repository: OWNER/NAME; created where it is missing.
        private: whether a new repository is private.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        RunFolderError: the source, its policy or the repository's name cannot be used.
        RunError: the upload failed.

    Example:
        ``anynest.push_to_hub("runs/a", "user/name")``, and elsewhere
        ``anynest.load("hf://user/name")``
    """
    check_repository(repository)
    source = local_source(source)
    weights = weights_file(source)
    model_card(source, repository)  # refuse a damaged source before anything is asked of the Hub
    target = HubSource(repository)
    earlier = find(target, CARD)
    text = earlier.read_text(encoding="utf-8", errors="replace")[:MOST] if earlier else ""
    card = model_card(source, repository, front_matter(text))
    files: dict[str, Path | bytes | None] = {FILE: weights, CARD: card.encode()}
    policy = policy_file(source)  # the card has checked it
    if policy.is_file():
        files[POLICY] = policy
    elif find(target, POLICY) is not None:
        files[POLICY] = None
    return upload(
        repository, files, private=private, message=message or "Weights and card from anynest"
    )


def front_matter(card: str) -> str:
    """The block between the ``---`` lines at the beginning of a card; empty without one.

    >>> front_matter("---\\nlicense: mit\\n---\\n# Title")
    'license: mit'
    """
    lines = card.splitlines()
    if not lines or lines[0].strip() != "---":
        return ""
    for number, line in enumerate(lines[1:], 1):
        if line.strip() == "---":
            return "\n".join(lines[1:number])
    return ""
