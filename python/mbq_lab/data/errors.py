"""The error of a data set's files."""


class DataError(ValueError):
    """A file of a data set is broken, missing, or not what its layout promises; the message names it.

    Bytes of a name that are not UTF-8 are shown as \\xNN: a message must be one that can be printed.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return `text` with \\udcNN for every byte NN of a name that is not UTF-8."""
    return text.encode(errors="backslashreplace").decode()
