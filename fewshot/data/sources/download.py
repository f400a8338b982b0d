"""Fetching one file: what is cut off goes on where it stopped, and nothing unchecked gets the file's name."""

from __future__ import annotations

import errno
import fcntl
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fewshot.core.errors import NO_ROOM, NOT_ALLOWED, FewshotError, one_line, writing

BLOCK = 1 << 18
TIMEOUT = 30  # seconds without a single byte


def fetch(url: str, path: Path, *, check: Callable[[Path], None], what: str) -> None:
    """Fetch `url` to `path`, by way of `<path>.part`, which is left for the next call where the transfer breaks off.

    A connection that breaks is taken up again for as long as each brings something. Beside the part lies
    `<path>.part.version`, what the server called the version that the part is of: the rest is asked for only with it.
    Where another process fetches the same file, this one waits for it.

    Args:
        url: of the file.
        path: of the file to be; its folder is made.
        check: raises a FewshotError where the file that it gets, whole but still a part by name, is not the wanted one.
        what: is fetched, in words, for the progress bar and the errors.

    Raises:
        FewshotError: the file cannot be had, or is not the wanted one; with the way to fetch it by hand.
    """
    part, by_hand = path.with_name(path.name + ".part"), f"download {url} by hand to {path}"
    with writing(path, "another folder for the data, as by data_dir"):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.open("ab").close()
    try:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # held until the file is closed, or the process dies
            if not path.exists():
                while not _transfer(url, file, part, what):
                    pass
                try:
                    check(part)
                except FewshotError as error:
                    _remove(part)
                    raise FewshotError(f"{error}: fetch {what} again, or {by_hand}") from error
                os.replace(part, path)
            _remove(part)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if part.exists() and not part.stat().st_size:
            _remove(part)
        if isinstance(error, OSError) and error.errno in (*NO_ROOM, *NOT_ALLOWED, errno.EROFS):
            with writing(path, "another folder for the data, as by data_dir"):
                raise
        raise FewshotError(
            f"{path}: fetching {what} failed ({one_line(error)}): try again, it goes on where it stopped, or {by_hand}"
        ) from error


def _transfer(url: str, file: BinaryIO, part: Path, what: str) -> bool:
    """Add what one connection brings; False: it broke, but the part is longer than before, or begins anew."""
    version = part.with_name(part.name + ".version")
    start = before = file.seek(0, os.SEEK_END)
    known = version.read_text(encoding="latin1") if start and version.exists() else ""
    headers = {"Range": f"bytes={start}-", "If-Range": known} if known else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not known:  # 416: nothing lies beyond what is there
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return True
        file.truncate(0)
        return False
    with answer:
        if answer.status != 206:
            start = 0  # the server does not know how to send the rest, or has another version by now
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError("the server sent another rest than it was asked for")
        file.truncate(start)
        # A weak tag (W/) vouches for the meaning, not for the bytes.
        tags = (answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))
        version.write_text(next((tag for tag in tags if tag and tag[:2] != "W/"), ""), encoding="latin1")
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        size, broken = _receive(answer, file, start, total, what)
    if broken is None and total in (None, size):
        return True
    if size > before:
        return False
    raise broken or OSError(f"{size} of {total} bytes came")


def _receive(
    answer: http.client.HTTPResponse, file: BinaryIO, start: int, total: int | None, what: str
) -> tuple[int, Exception | None]:
    """The size of the part afterwards, and what broke the connection."""
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console, size = Console(stderr=True), start
    if not console.is_terminal:
        print(f"fetching {what}", file=sys.stderr, flush=True)
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        task = progress.add_task(what, total=total, completed=start)
        try:
            while block := answer.read(BLOCK):
                file.write(block)
                size += len(block)
                progress.update(task, completed=size)
        except (OSError, http.client.HTTPException) as error:
            return size, error
        finally:
            file.flush()
    return size, None


def _remove(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".version")):
        path.unlink(missing_ok=True)
