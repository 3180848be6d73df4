"""What goes wrong with runs and their files, each one line: the rule, the value found, the remedy."""


class RunFolderError(ValueError):
    """A run folder or a file in it that cannot be used as asked (exit status 2)."""


class RunError(RuntimeError):
    """Work that had started and failed (exit status 1)."""
