"""The one exception that a person is meant to read."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM)
IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY)


class FewshotError(Exception):
    """A mistake in the input: what is wrong, where, and what to do, in one line.

    The tools print it on stderr without a traceback and exit with a code other than 0.
    """


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def writing(place: str | Path, elsewhere: str) -> Iterator[None]:
    """Say in one line why files cannot be written, and what to do about this very reason.

    Args:
        place: the file or folder that the block writes.
        elsewhere: another place, as a person names it: "another run_dir".

    Raises:
        FewshotError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = f"choose {elsewhere}"
        if error.errno in NO_ROOM:
            remedy = "make room, then the same command goes on"
        elif error.errno in NOT_ALLOWED:
            remedy = f"change its permissions, or {remedy}"
        elif error.errno in IN_THE_WAY:
            remedy = f"a file is in the way: remove it, or {remedy}"
        raise FewshotError(f"{place}: cannot be written ({error.strerror or one_line(error)}); {remedy}") from error
