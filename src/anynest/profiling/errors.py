"""The error of this room."""


class ProfileError(ValueError):
    """A profile that cannot be used as asked: one line with the rule, the value found, a remedy."""
