"""File locks: one holder, released with the block and with the process."""

import subprocess
import sys
import threading
from pathlib import Path

from anynest.store.files import file_lock


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path) as first, file_lock(path, wait=False) as second:
        assert (first, second) == (True, False)
    with file_lock(path, wait=False) as held:
        assert held


def test_a_second_holder_waits(tmp_path: Path) -> None:
    path, held = tmp_path / "lock", []

    def wait() -> None:
        with file_lock(path) as mine:
            held.append(mine)

    with file_lock(path):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        assert not held
    thread.join()
    assert held == [True]


def test_the_system_releases_the_lock_of_a_process_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom anynest.store.files import file_lock\n"
        "with file_lock(Path(sys.argv[1])) as held:\n    os._exit(17 if held else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 17
    with file_lock(path, wait=False) as held:
        assert held
