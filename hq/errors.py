"""The one error that a user's input can cause."""


class HQError(Exception):
    """Bad input, said in one sentence that names the thing and the fix.

    The command line prints the sentence and exits with code 2; nothing has been half-written.
    """


def first_line(error: Exception) -> str:
    """What an error says first, to be put into a sentence."""
    return str(error).strip().splitlines()[0].rstrip(".: ") if str(error).strip() else repr(error)
