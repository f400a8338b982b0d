"""The exception for a person's mistakes."""

from __future__ import annotations

import errno
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
# Folders whose files are no person's own: of this project, Python's library and what is installed.
_NOT_OWN = {
    *(_ROOT / name for name in ("fewshot", "tools")),
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM)
IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY)


class FewshotError(Exception):
    """A mistake in the input: what is wrong, where, and what to do, in one line.

    The tools print it on stderr without a traceback and exit with a code other than 0.

    Attributes:
        everywhere: whether all processes of torchrun fail, each with this error or because rank 0 did.
    """

    def __init__(self, message: str = "", *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class TaskSizeError(FewshotError):
    """Data have too few classes, or too few examples of one, for the tasks that are asked for.

    Attributes:
        class_sizes: the number of examples of each class, where the data could not be split; else None.
    """

    def __init__(self, message: str, class_sizes: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.class_sizes = class_sizes


class ImageShapeError(FewshotError):
    """A network for images was given examples of another shape, such as features."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line, or its class name if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def error_location(error: BaseException) -> str:
    """`file:line` of the last line of a person's own file that led to an error; "" if none did."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and "site-packages" not in path.parts and not _NOT_OWN.intersection(path.parents):
            return f"{path.name}:{frame.lineno}"
    return ""


@contextmanager
def writing(path: str | Path, alternative: str) -> Iterator[None]:
    """Turn an OSError of the block, which writes files, into one line that says why and what to do.

    Args:
        path: the file or folder that the block writes.
        alternative: where else to write, for the message, such as "another run_dir".

    Raises:
        FewshotError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = f"choose {alternative}"
        if error.errno in NO_ROOM:
            remedy = "make room, then the same command goes on"
        elif error.errno in NOT_ALLOWED:
            remedy = f"change its permissions, or {remedy}"
        elif error.errno in IN_THE_WAY:
            remedy = f"a file is in the way: remove it, or {remedy}"
        raise FewshotError(f"{path}: cannot be written ({error.strerror or one_line(error)}); {remedy}") from error
