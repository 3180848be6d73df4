"""Errors of runs and their files, one line each: the rule, the value found, the remedy."""


class RunFolderError(ValueError):
    """A run folder, or a file in it, cannot be used as asked (exit status 2)."""


class RunError(RuntimeError):
    """Work failed after it had started (exit status 1)."""
