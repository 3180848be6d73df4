"""Started by torchrun for test_examples.py: ``example_runner.py NAME...`` runs examples in turn.

As each would be by a torchrun of its own, which takes seconds to start.
"""

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    names = sys.argv[1:]
    for name in names:
        path = Path(__file__).parents[1] / "examples" / f"{name}.py"
        sys.argv = [str(path)]
        if os.environ["RANK"] == "0":  # which alone prints what an example finds
            print(f"== {name}", flush=True)
        runpy.run_path(str(path), run_name="__main__")
        sys.stdout.flush()
