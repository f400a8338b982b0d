"""The one exception that a person is meant to read."""


class FewshotError(Exception):
    """A mistake in the input: what is wrong, where, and what to do, in one line.

    The tools print it on stderr without a traceback and exit with a code other than 0.
    """
