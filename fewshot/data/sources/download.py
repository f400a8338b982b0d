"""Download one file: an interrupted transfer is resumed, and the file gets its name only after a check."""

from __future__ import annotations

import errno
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from fewshot.core.errors import NO_ROOM, NOT_ALLOWED, FewshotError, one_line, writing
from fewshot.core.files import lock_file
from fewshot.core.progress import progress_bar

BLOCK = 1 << 18
TIMEOUT = 30  # seconds without a single byte


def fetch(url: str, path: Path, *, check: Callable[[Path], None]) -> None:
    """Download `url` to `path`, through `<path>.part`, from which the next call resumes an interrupted transfer.

    A broken connection is opened again as long as each one brings some bytes. `<path>.part.version` holds the server's
    name (ETag) for the version of the part; the rest is only asked for with that name. If another process downloads
    the same file, this one waits for it.

    Args:
        url: of the file.
        path: of the file; its folder is made.
        check: gets the path of the complete part, and raises a FewshotError if it is not the wanted file.

    Raises:
        FewshotError: the file cannot be downloaded, or is not the wanted one; with the way to download it by hand.
    """
    what = path.name
    part, by_hand = path.with_name(path.name + ".part"), f"download {url} by hand to {path}"
    with writing(path, "another folder for the data, as by data_dir"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file(part).close()
    try:
        with lock_file(part) as part_file:  # until it is closed or the process ends; only who holds it removes it
            file = part_file.buffer
            if not path.exists():
                try:
                    while not _transfer(url, file, part, what):
                        pass
                except (OSError, http.client.HTTPException, ValueError):
                    if not os.fstat(file.fileno()).st_size:
                        _remove(part)
                    raise
                try:
                    check(part)
                except FewshotError as error:
                    _remove(part)
                    raise FewshotError(f"{error}: fetch {what} again, or {by_hand}") from error
                os.replace(part, path)
            _remove(part)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (*NO_ROOM, *NOT_ALLOWED, errno.EROFS):
            with writing(path, "another folder for the data, as by data_dir"):
                raise
        raise FewshotError(
            f"{path}: fetching {what} failed ({one_line(error)}): try again, it goes on where it stopped, or {by_hand}"
        ) from error


def _transfer(url: str, file: BinaryIO, part: Path, what: str) -> bool:
    """Append what one connection brings.

    Returns:
        Whether the part is complete; False asks for another connection.
    """
    version_file = part.with_name(part.name + ".version")
    start = size_before = file.seek(0, os.SEEK_END)
    version = version_file.read_text(encoding="latin1") if start and version_file.exists() else ""
    headers = {"Range": f"bytes={start}-", "If-Range": version} if version else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not version:  # 416: there are no bytes after the part
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return True
        file.truncate(0)
        return False
    with answer:
        if answer.status != 206:
            start = 0  # the server cannot send a rest, or it has another version by now
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError("the server sent another range than it was asked for")
        file.truncate(start)
        # A weak tag (W/) does not promise equal bytes.
        tags = (answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))
        version_file.write_text(next((tag for tag in tags if tag and tag[:2] != "W/"), ""), encoding="latin1")
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        size, broken = start, None
        with progress_bar(f"fetching {what}, MB", (total or 0) // 10**6, start // 10**6) as advance:
            try:
                while block := answer.read(BLOCK):
                    file.write(block)
                    size += len(block)
                    advance("", len(block) / 1e6)
            except (OSError, http.client.HTTPException) as error:
                broken = error
            finally:
                file.flush()
    if broken is None and total in (None, size):
        return True
    if size > size_before:
        return False
    raise broken or OSError(f"{size} of {total} bytes came")


def _remove(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".version")):
        path.unlink(missing_ok=True)
