"""What messages take from the errors of others."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of `error`."""
    return str(error).strip().partition("\n")[0]
