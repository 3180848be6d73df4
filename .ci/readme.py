"""Run the Python examples of a Markdown page in the installed package, from a folder of no use.

python .ci/readme.py README.md
"""

import re
import sys
import sysconfig
import tempfile
from contextlib import chdir
from pathlib import Path

import anynest


def main(page: Path) -> None:
    installed = Path(anynest.__file__).resolve()
    site = Path(sysconfig.get_path("purelib")).resolve()
    if site not in installed.parents:
        sys.exit(f"the package must be the installed one, found {installed}: unset PYTHONPATH")
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    if not examples:
        sys.exit(f"{page} must have Python examples, found none")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for code in examples:
            exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
    print(f"{page.name}: {len(examples)} examples ran with anynest {anynest.__version__}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
