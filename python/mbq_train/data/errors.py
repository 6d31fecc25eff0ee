"""The error of a data set's files."""


class DataError(ValueError):
    """A file of a data set is broken, missing, or not what its layout promises; the message names it."""
