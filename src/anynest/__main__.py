"""``python -m anynest`` is the command ``anynest``."""

import sys

from anynest.cli import main

if __name__ == "__main__":
    sys.exit(main())
