"""The error that is caused by a user's input."""


class HQError(Exception):
    """Bad input, described in one sentence: what is wrong, and what to do.

    The command line prints the sentence and exits with code 2. No incomplete file is left.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop, for use in a sentence."""
    return str(error).strip().splitlines()[0].rstrip(".: ") if str(error).strip() else repr(error)
