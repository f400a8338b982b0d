"""The one exception that a person is meant to read."""


class FewshotError(Exception):
    """A mistake in the input: what is wrong, where, and what to do, in one line.

    The tools print it on stderr without a traceback and exit with a code other than 0.
    """


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
