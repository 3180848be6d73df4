"""Files in repositories of the Hugging Face Hub: ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``.

Only files of known names are read and written, and nothing in them is executed. ``huggingface_hub``
(an extra) is imported when it is used. It keeps downloads in its own cache, under their final names
only once they are whole, and reads its own settings, such as ``HF_HOME`` and ``HF_ENDPOINT``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RunError, RunFolderError

_SOURCE = re.compile(r"hf:/{1,2}(?P<repository>[^@]*)(?:@(?P<revision>.*))?", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")

_MISSING = ("EntryNotFoundError", "RemoteEntryNotFoundError", "RepositoryNotFoundError")
_UNREACHED = "LocalEntryNotFoundError"
# huggingface_hub's errors by the names of their classes, the most special first
_MEANINGS = {
    _UNREACHED: "the Hub cannot be reached, and no copy is in the cache",
    "OfflineModeIsEnabled": "offline mode is on, and no copy is in the cache",
    "RevisionNotFoundError": "there is no such revision",
    "GatedRepoError": "access must be asked for on the repository's page",
    "RepositoryNotFoundError": "there is no such repository, or it is private: `hf auth login`",
    "EntryNotFoundError": "it has no such file",
    "LocalTokenNotFoundError": "no token is stored: `hf auth login`",
}


@dataclass(frozen=True)
class HubSource:
    """A repository and, where given, a revision: a branch, a tag or a commit."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub(source: object) -> bool:
    """Whether a source names a repository; also after ``Path`` has removed a slash.

    >>> is_hub("hf://user/name"), is_hub("runs/a"), is_hub(Path("hf://user/name"))
    (True, False, True)
    """
    return isinstance(source, str | Path) and str(source).startswith("hf:/")


def parse_source(source: str | Path) -> HubSource:
    """The repository that a source names.

    >>> parse_source("hf://user/name@v1.0")
    HubSource(repository='user/name', revision='v1.0')

    Raises:
        RunFolderError: not of the form ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``.
    """
    match = _SOURCE.fullmatch(str(source))
    if match is None:
        raise RunFolderError(f"{source} must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    revision = match["revision"]
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise RunFolderError(
            f"the revision must be a branch, a tag or a commit, found {revision!r}: give "
            "hf://OWNER/NAME@REVISION"
        )
    return HubSource(check_repository(match["repository"]), revision)


def check_repository(name: str) -> str:
    """The name of a repository, OWNER/NAME.

    Raises:
        RunFolderError: another form.
    """
    parts = name.split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(part) and ".." not in part for part in parts):
        raise RunFolderError(
            f"a repository must be OWNER/NAME, of letters, digits, '-', '_' and '.', found {name!r}"
        )
    return name


def download(source: HubSource, name: str) -> Path:
    """A local copy of one file of a repository.

    Raises:
        RunFolderError: huggingface_hub is not installed.
        RunError: there is no such file, or it could not be downloaded.
    """
    with _explained(f"download {name} of {source}"):
        return _fetch(source, name)


def find(source: HubSource, name: str, *, cache_is_enough: bool = False) -> Path | None:
    """A local copy of a file of a repository; None where the repository or the file is missing.

    Args:
        source: the repository.
        name: of the file.
        cache_is_enough: None also where the Hub cannot be reached and the cache has no copy.

    Raises:
        RunFolderError: huggingface_hub is not installed.
        RunError: it could not be downloaded.
    """
    with _explained(f"download {name} of {source}"):
        try:
            return _fetch(source, name)
        except Exception as error:
            kind = type(error).__name__
            if kind in _MISSING or (cache_is_enough and kind == _UNREACHED):
                return None
            raise


def upload(
    repository: str, files: Mapping[str, Path | bytes | None], *, private: bool, message: str
) -> str:
    """Write files into a repository as one commit; the repository is created where it is missing.

    Args:
        repository: OWNER/NAME.
        files: by their names in the repository; None removes a file that is there.
        private: whether a new repository is private.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        RunFolderError: huggingface_hub is not installed.
        RunError: the upload failed; the repository is as it was.
    """
    check_repository(repository)
    with _explained(f"upload to hf://{repository}"):
        api = _api()
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for name, data in files.items():
            if data is None:
                operations.append(CommitOperationDelete(name))
            else:
                content = str(data) if isinstance(data, Path) else data
                operations.append(CommitOperationAdd(name, content))
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.create_commit(repository, operations, commit_message=message)
        return str(made.commit_url)


def _fetch(source: HubSource, name: str) -> Path:
    return Path(_api().hf_hub_download(source.repository, name, revision=source.revision))


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise RunFolderError(
            "the Hub needs huggingface_hub, which is not installed: pip install 'anynest[hub]'"
        ) from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="anynest")


@contextmanager
def _explained(work: str) -> Iterator[None]:
    """One line for the errors of several libraries."""
    try:
        yield
    except RunFolderError:
        raise
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        reason = next((text for name, text in _MEANINGS.items() if name in kinds), None)
        if reason is None:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {' '.join(lines)[:200]}"
        raise RunError(f"cannot {work}: {reason}") from error
