"""Files that are written whole or not at all, and locks on folders."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from fewshot.core.distributed import is_main
from fewshot.core.errors import FewshotError, writing
from fewshot.core.progress import print_note

LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of file systems that have none


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one move: after any interruption it holds the old content or the new, never a part.

    Only rank 0 writes; on other ranks this does nothing. Of two processes that write it, the second one waits.

    Raises:
        FewshotError: the file cannot be written; it keeps its old content.
    """
    if not is_main():
        return
    with writing(path, "another folder"):
        path = Path(os.path.realpath(path)) if path.is_symlink() else path  # the link stays
        scratch = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = lock_file(scratch)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            file = scratch.open("a")
        with file:
            try:
                file.truncate(0)  # of what a process that was killed has left
                file.buffer.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(scratch, path)
            except OSError:
                with contextlib.suppress(OSError):
                    scratch.unlink(missing_ok=True)
                raise


def find_below(folder: Path, name: str) -> tuple[list[Path], list[str]]:
    """The paths of all files of this name in a folder and below it, sorted; those behind links to folders too, once.

    Returns:
        The paths, and a line for each folder that cannot be read.
    """
    found: dict[str, Path] = {}
    closed: dict[str, str] = {}

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # not there, or gone since
            closed[os.path.realpath(error.filename)] = f"{error.filename}: cannot be read ({error.strerror})"

    for links in (False, True):  # a file has the name without a link where it has one
        seen: set[str] = set()
        for root, folders, names in os.walk(folder, onerror=note, followlinks=links):
            if (place := os.path.realpath(root)) in seen:
                folders.clear()
                continue
            seen.add(place)
            if name in names:
                found.setdefault(os.path.realpath(Path(root, name)), Path(root, name))
    return sorted(found.values()), list(closed.values())


def check_output(key: str, path: Path) -> None:
    """Raises FewshotError if what a key names, a file to be written, is a folder, a device or a pipe."""
    if path.is_dir():
        raise FewshotError(f"{key}={path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise FewshotError(f"{key}={path}: is a device or a pipe; name a file")


@contextlib.contextmanager
def lock_dir(folder: Path, *, wait: bool = False, remedy: str = "another run_dir") -> Iterator[None]:
    """Lock a folder for this process. The system releases the lock when the process ends, however it ends.

    Args:
        wait: whether to wait until the other process ends. Not for a run folder, whose run would then be done already.
        remedy: what to choose in its place, for a message.

    Raises:
        FewshotError: another process holds it, or it cannot be written to.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder, "another folder" if wait else remedy):
        try:
            file = lock_file(folder / LOCK, wait)
        except BlockingIOError as error:
            raise FewshotError(
                f"{folder}: another process is running there; wait for it, or choose {remedy}"
            ) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):  # not empty; if nothing was written, the new folders are removed again
            for path in new_folders:
                path.rmdir()


def lock_file(path: Path, wait: bool = True) -> TextIO:
    """Lock a file, created if missing, until the returned file is closed or this process ends.

    Args:
        wait: whether to wait, after a note, until the process that holds it ends.

    Raises:
        OSError: the file cannot be made; BlockingIOError: another process holds it, and `wait` is False.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process that has just finished has removed the file, or has moved it away with its folder.
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                print_note(f"waits for another process, which is at work in {path.parent}")
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                stack.pop_all()
                return file
