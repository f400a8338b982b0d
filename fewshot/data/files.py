"""The files of a source, whether it is a folder, a zip or a tar; archives are read where they lie, never unpacked."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fewshot.data.images import web_page
from fewshot.errors import FewshotError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DAMAGED = (OSError, EOFError, RuntimeError, ValueError, zlib.error, zipfile.BadZipFile, tarfile.TarError)
MAX_BYTES = 1 << 27  # of one image file


@dataclass(frozen=True)
class Files:
    """The files below a folder or in an archive, hidden ones and folders passed over.

    Attributes:
        root: the folder or archive.
        names: of the files, relative to it, with slashes; in the order in which they are quickly read.
        opened: a context manager that opens one of them.
        read: the contents of some, one after the other, given in the order of `names`.
    """

    root: Path
    names: list[str]
    opened: Callable[[str], object]
    read: Callable[[Sequence[str]], Iterator[bytes]]

    def where(self, name: str) -> str:
        """A file's name for people."""
        return f"{self.root}/{name}" if self.root.is_dir() else f"{self.root}: {name}"


def open_files(root: Path) -> Files:
    """List a source.

    Raises:
        FewshotError: neither folder nor archive, a damaged archive, a web page in its place, or a member that would lie
            outside the archive.
    """
    if root.is_dir():
        return _folder(root)
    if not root.exists():
        raise FewshotError(f"{root}: no such file or folder")
    with root.open("rb") as file:
        if web_page(file.read(512)):
            raise FewshotError(f"{root}: a web page, not an archive: the download went wrong; fetch the file by hand")
    if not root.name.lower().endswith(ARCHIVES):
        raise FewshotError(f"{root}: give a folder, or an archive ({', '.join(ARCHIVES)})")
    try:
        return _zip(root) if root.suffix.lower() == ".zip" else _tar(root)
    except DAMAGED as error:
        raise FewshotError(f"{root}: not a whole archive ({_line(error)}); fetch it again") from error


def _folder(root: Path) -> Files:
    names = []
    for path, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        inner = Path(path).relative_to(root).as_posix()
        names += [name if inner == "." else f"{inner}/{name}" for name in sorted(files) if name[0] != "."]

    def read(wanted: Sequence[str]) -> Iterator[bytes]:
        for name in wanted:
            with (root / name).open("rb") as file:
                yield file.read(MAX_BYTES)

    return Files(root, names, lambda name: (root / name).open("rb"), read)


def _zip(root: Path) -> Files:
    with zipfile.ZipFile(root) as archive:
        names = [member.filename for member in archive.infolist() if not member.is_dir()]

    @contextmanager
    def opened(name: str) -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(root) as archive, archive.open(name) as file:
            yield file

    def read(wanted: Sequence[str]) -> Iterator[bytes]:
        with zipfile.ZipFile(root) as archive:
            for name in wanted:
                with archive.open(name) as file:
                    yield file.read(MAX_BYTES)

    return Files(root, _safe(root, names), opened, read)


def _tar(root: Path) -> Files:
    with tarfile.open(root) as archive:
        members = archive.getmembers()
    for member in members:
        if not (member.isfile() or member.isdir()):
            raise FewshotError(f"{root}: {member.name}: a link or device, which no data set has: refused")

    @contextmanager
    def opened(name: str) -> Iterator[IO[bytes]]:
        with tarfile.open(root) as archive:
            file = archive.extractfile(name)
            assert file is not None
            yield file

    def read(wanted: Sequence[str]) -> Iterator[bytes]:
        rest = iter(wanted)
        name = next(rest, None)
        with tarfile.open(root, "r|*") as archive:  # once through, whatever it is packed with
            for member in archive:
                if name is None:
                    return
                if member.name == name:
                    file = archive.extractfile(member)
                    assert file is not None
                    yield file.read(MAX_BYTES)
                    name = next(rest, None)

    return Files(root, _safe(root, [member.name for member in members if member.isfile()]), opened, read)


def _safe(root: Path, names: list[str]) -> list[str]:
    """The names without hidden files.

    Raises:
        FewshotError: a name twice, an absolute one, or one that leads out of the archive.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FewshotError(f"{root}: holds {twice} twice; fetch it again")
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
            raise FewshotError(f"{root}: {name}: a member that leads out of the archive: refused")
    return [name for name in names if not any(p.startswith((".", "__MACOSX")) for p in PurePosixPath(name).parts)]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
