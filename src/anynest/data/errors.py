"""The one error of this room: a user's data are not as they should be, said in one line."""


class DataError(ValueError):
    """Data that cannot be used as they are: the message gives the rule, the value found, a remedy."""
