"""The files of a source, whether it is a folder, a zip or a tar; archives are read where they lie, never unpacked."""

from __future__ import annotations

import lzma
import os
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import IO

from fewshot.data.images import HEAD_BYTES, web_page
from fewshot.errors import FewshotError, one_line

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    SyntaxError,  # of the header of a NumPy file
    tokenize.TokenError,
)
MAX_BYTES = 1 << 27  # of one image file


@dataclass(frozen=True)
class Files:
    """The files below a folder or in an archive, hidden ones and folders passed over.

    Attributes:
        root: the folder or archive.
        names: of the files, relative to it, with slashes; in the order in which they are quickly read.
        opened: a context manager that opens one of them.
        read: the contents of some, one after the other, given in the order of `names`. It raises one of `DAMAGED` at
            one that cannot be read, or has more than MAX_BYTES.
        heads: the first HEAD_BYTES of each in the same way, whatever its size.
    """

    root: Path
    names: list[str]
    opened: Callable[[str], AbstractContextManager[IO[bytes]]]
    read: Callable[[Sequence[str]], Iterator[bytes]]
    heads: Callable[[Sequence[str]], Iterator[bytes]]

    def changed(self, names: Sequence[str]) -> float:
        """When the last of some files was put there, or the archive, in seconds since 1970; 0 for none."""
        paths = [self.root / name for name in names] if self.root.is_dir() else [self.root] if names else []
        return max((path.stat().st_ctime for path in paths), default=0.0)

    @cached_property
    def joint(self) -> str:
        """What stands between the source and a file in a file's name for people."""
        return "/" if self.root.is_dir() else ": "

    def where(self, name: str) -> str:
        """A file's name for people."""
        name = name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)
        return name if name.startswith("/") else f"{self.root}{self.joint}{name}"


def open_files(root: Path, page: str = "") -> Files:
    """List a source.

    Args:
        page: where an archive is to be had by hand.

    Raises:
        FewshotError: neither folder nor archive, one that may not be read, a damaged or encrypted archive, a web page
            in its place, or a member that would lie outside the archive.
    """
    try:
        if root.is_dir():
            return _folder(root)
        if not root.exists():
            raise FewshotError(
                f"{root}: no such file or folder; name another, by dataset.reader.root=<path>, or of a run whose "
                "images moved by root=<path>"
            )
        with root.open("rb") as file:
            if web_page(file.read(512)):
                raise FewshotError(
                    f"{root}: a web page, not an archive: the download went wrong; fetch the file by hand"
                    f"{f', from {page}' if page else ''}"
                )
        if not root.name.lower().endswith(ARCHIVES):
            raise FewshotError(f"{root}: give a folder, or an archive ({', '.join(ARCHIVES)})")
        return _zip(root) if root.suffix.lower() == ".zip" else _tar(root)
    except PermissionError as error:
        raise FewshotError(f"{error.filename or root}: may not be read; change its permissions") from error
    except DAMAGED as error:
        raise FewshotError(f"{root}: not a whole archive ({one_line(error)}); fetch it again") from error


def _folder(root: Path) -> Files:
    names = []
    for path, folders, files in os.walk(root, onerror=_stop, followlinks=True):
        folders[:] = sorted(
            name for name in folders if not name.startswith((".", "__MACOSX")) and not _leads_back(Path(path, name))
        )
        inner = Path(path).relative_to(root).as_posix()
        names += [name if inner == "." else f"{inner}/{name}" for name in sorted(files) if name[0] != "."]

    def read(wanted: Sequence[str], part: Callable[[IO[bytes]], bytes] = _content) -> Iterator[bytes]:
        for name in wanted:
            with (root / name).open("rb") as file:
                yield part(file)

    return Files(root, names, lambda name: (root / name).open("rb"), read, partial(read, part=_head))


def _stop(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that it may not read


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in, through which one would come by it again and again."""
    return folder.is_symlink() and any(folder.samefile(above) for above in folder.parents)


def _zip(root: Path) -> Files:
    with zipfile.ZipFile(root) as archive:
        members = archive.infolist()
    # A damaged entry can swallow the next ones: hold their number against the last record, which zipfile does not.
    with root.open("rb") as file:
        file.seek(-min(root.stat().st_size, (1 << 16) + 22), os.SEEK_END)
        end = file.read()
    number = int.from_bytes(end[end.rfind(b"PK\5\6") + 10 :][:2], "little")
    if number not in (len(members) % (1 << 16), (1 << 16) - 1):  # the latter if it stands elsewhere
        raise zipfile.BadZipFile(f"{len(members)} of {number} members")
    for member in members:
        if member.flag_bits & 1:
            raise FewshotError(f"{root}: {member.filename}: encrypted; unpack the archive, and give the folder")
    names = _safe(root, [member.filename for member in members if not member.is_dir()])

    @contextmanager
    def opened(name: str) -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(root) as archive, archive.open(names[name]) as file:
            yield file

    def read(wanted: Sequence[str], part: Callable[[IO[bytes]], bytes] = _content) -> Iterator[bytes]:
        with zipfile.ZipFile(root) as archive:
            for name in wanted:
                with archive.open(names[name]) as file:
                    yield part(file)

    return Files(root, list(names), opened, read, partial(read, part=_head))


def _tar(root: Path) -> Files:
    found = []
    with tarfile.open(root) as archive:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                raise FewshotError(f"{root}: {member.name}: a link or device, which no data set has: refused")
            if member.isfile():
                found.append(member.name)
        # tarfile takes a damaged or missing header for the end, and does not come to gzip's checksum behind it.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        rest = archive.fileobj.read(tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("cut short")
        while rest:
            if rest.strip(b"\0"):
                raise tarfile.ReadError("a damaged member")
            rest = archive.fileobj.read(1 << 20)
    names = _safe(root, found)

    @contextmanager
    def opened(name: str) -> Iterator[IO[bytes]]:
        with tarfile.open(root) as archive:
            file = archive.extractfile(names[name])
            assert file is not None
            yield file

    def read(wanted: Sequence[str], part: Callable[[IO[bytes]], bytes] = _content) -> Iterator[bytes]:
        rest = iter(wanted)
        name = next(rest, None)
        with tarfile.open(root, "r|*") as archive:  # once through, whatever it is packed with
            for member in archive:
                if name is None:
                    return
                if member.name == names[name]:
                    file = archive.extractfile(member)
                    assert file is not None
                    yield part(file)
                    name = next(rest, None)
        if name is not None:
            raise ValueError(f"{name} does not come where it was asked for")

    return Files(root, list(names), opened, read, partial(read, part=_head))


def _content(file: IO[bytes]) -> bytes:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes, which no image has")
    return data


def _head(file: IO[bytes]) -> bytes:
    return file.read(HEAD_BYTES)


def _safe(root: Path, members: list[str]) -> dict[str, str]:
    """The members of an archive that are not hidden, by plain names: with slashes, and without a "./" before them.

    Raises:
        FewshotError: a name twice, an absolute one, or one that leads out of the archive.
    """
    plain: dict[str, str] = {}
    for member in members:
        path = PurePosixPath(member.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
            raise FewshotError(f"{root}: {member}: a member that leads out of the archive: refused")
        if path.as_posix() in plain:
            raise FewshotError(f"{root}: holds {member} twice; fetch it again")
        plain[path.as_posix()] = member
    hidden = {name for name in plain if any(p.startswith((".", "__MACOSX")) for p in name.split("/"))}
    return {name: member for name, member in plain.items() if name not in hidden}


@contextmanager
def opened(files: Files, name: str, remedy: str) -> Iterator[IO[bytes]]:
    """One file of a source, to be read; in the end it is read on to its last byte, behind which checksums stand.

    Raises:
        FewshotError: a web page in its place, damage, or a FewshotError of the block, each with the remedy behind it.
    """
    where = files.where(name)
    try:
        with files.opened(name) as file:
            if web_page(file.peek(512)):  # pyright: ignore
                raise FewshotError(f"{where}: a web page, not the file")
            yield file
            while file.read(1 << 20):
                pass
    except FewshotError as error:
        raise FewshotError(f"{error}; {remedy}") from error
    except DAMAGED as error:
        raise FewshotError(f"{where}: cannot be read ({one_line(error)}); {remedy}") from error
