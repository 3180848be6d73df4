"""Download of a set from the Hugging Face Hub. Needs huggingface_hub, imported when used."""

from pathlib import Path

from ..errors import DataError


def download(repository: str) -> Path:
    """The local folder of a data set's Parquet files, e.g. of "uoft-cs/cifar10".

    Kept and found again in the Hub's own cache; a second call needs no network.

    Raises:
        DataError: huggingface_hub is not installed, there is no network, or no such data set.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(
            "downloading from the Hub needs huggingface_hub, which is not installed: "
            "pip install 'anynest[hub]'"
        ) from None
    try:
        return Path(
            snapshot_download(repository, repo_type="dataset", allow_patterns=["*.parquet"])
        )
    except Exception as error:  # its errors come from several libraries
        reason = next(iter(str(error).splitlines()), "")[:160] or type(error).__name__
        raise DataError(
            f"cannot download {repository} from the Hub ({reason}): "
            "check the name and the network, or give the path of a local copy"
        ) from None
