"""Files that are written whole or not at all, and locks on folders."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fewshot.core.distributed import is_main
from fewshot.core.errors import FewshotError, writing

LOCK = ".lock"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one move: after any interruption it holds the old content or the new, never a part.

    Only rank 0 writes; on other ranks this does nothing.

    Raises:
        FewshotError: the file cannot be written; it keeps its old content.
    """
    if not is_main():
        return
    scratch = path.with_name(path.name + ".part")
    with writing(path, "another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def lock_dir(folder: Path) -> Iterator[None]:
    """Lock a run folder for this process. The system releases the lock when the process ends, however it ends.

    Raises:
        FewshotError: another process holds it, or it cannot be written to.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder, "another run_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise FewshotError(
                f"{folder}: another process is running there; wait for it, or choose another run_dir"
            ) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):  # not empty; if nothing was written, the new folders are removed again
            for path in new_folders:
                path.rmdir()
