"""A console that leaves a closed pipe to ``main``, where rich would exit with status 1."""

import rich.console


class Console(rich.console.Console):
    """As rich's, but ``anynest models | head`` is no failure."""

    def on_broken_pipe(self) -> None:
        """Called while a BrokenPipeError is handled."""
        raise BrokenPipeError
