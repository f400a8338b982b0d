"""The files of a source: a folder, a zip or a tar. Archives are read where they are and never unpacked."""

from __future__ import annotations

import lzma
import os
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fewshot.core.errors import FewshotError, one_line
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import is_web_page

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What reading a damaged file can raise.
DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
DAMAGED += (SyntaxError, tokenize.TokenError)  # from the header of a NumPy file
UNFIT = (*DAMAGED, AttributeError, LookupError, TypeError)  # also from content of another kind
MAX_BYTES = 1 << 27  # of one image file


@dataclass(frozen=True)
class Files:
    """The files in a folder or an archive, without hidden files and hidden folders.

    Attributes:
        root: the folder or archive.
        names: paths below the root, with slashes, in the order in which they are read fastest.
        session: a context manager that keeps the archive open. It gives a function from a name to the open file.
    """

    root: Path
    names: list[str]
    session: Callable[[], AbstractContextManager[Callable[[str], IO[bytes]]]]

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open one file."""
        with self.session() as open_name, open_name(name) as file:
            yield file

    def read(self, names: Sequence[str]) -> Iterator[bytes]:
        """The contents of several files.

        Raises:
            One of `DAMAGED`: a file cannot be read, or has more than MAX_BYTES.
        """
        with self.session() as open_name:
            for name in names:
                yield read_whole(open_name, name)

    def newest_change(self, names: Sequence[str]) -> float:
        """Time of the latest change of these files, or of the archive, in seconds since 1970; 0 for no files."""
        paths = [self.root / name for name in names] if self.root.is_dir() else [self.root] if names else []
        return max((path.stat().st_ctime for path in paths), default=0.0)

    def describe(self, name: str) -> str:
        """The name of a file for messages, on one line: "<folder>/<name>" or "<archive>: <name>"."""
        printable = "".join(letter if letter.isprintable() else "?" for letter in name)
        return printable if name.startswith("/") else f"{self.root}{'/' if self.root.is_dir() else ': '}{printable}"


def read_whole(open_name: Callable[[str], IO[bytes]], name: str) -> bytes:
    """The content of one file of a session. Raises one of `DAMAGED`, as `Files.read`."""
    with open_name(name) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes, too many for one file")
    return data


def open_files(root: Path) -> Files:
    """List the files of a source.

    Raises:
        FewshotError: the path is neither a folder nor an archive, it may not be read, the archive is damaged, a web
            page was saved in its place, or a member leads out of the archive.
    """
    try:
        if root.is_dir():
            return _list_folder(root)
        if not root.exists():
            raise FewshotError(
                f"{root}: no such file or folder; name another, by dataset.reader.root=<path>, or by root=<path> for a "
                "run whose images moved"
            )
        with root.open("rb") as file:
            if is_web_page(file.read(512)):
                raise FewshotError(f"{root}: a web page, not an archive: the download went wrong; fetch it by hand")
        if not root.name.lower().endswith(ARCHIVES):
            raise FewshotError(f"{root}: give a folder, or an archive ({', '.join(ARCHIVES)})")
        return _list_zip(root) if root.suffix.lower() == ".zip" else _list_tar(root)
    except PermissionError as error:
        raise FewshotError(f"{error.filename or root}: may not be read; change its permissions") from error
    except DAMAGED as error:
        raise FewshotError(f"{root}: not a whole archive ({one_line(error)}); fetch it again") from error


def open_source(root: Path, is_wanted: Callable[[str], bool]) -> Files:
    """The files of a source. A folder with one archive and no wanted file stands for that archive.

    Raises:
        FewshotError: see `open_files`.
    """
    files = open_files(root)
    archives = [name for name in files.names if name.lower().endswith(ARCHIVES)]
    if root.is_dir() and len(archives) == 1 and not any(map(is_wanted, files.names)):
        return open_files(root / archives[0])
    return files


def check_archive(path: Path) -> None:
    """Read a downloaded zip or tar, whatever its name, to its last checksum.

    Raises:
        FewshotError: it is a web page, or damaged.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if is_web_page(head):
        raise FewshotError(f"{path}: a web page, not the archive")
    try:
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"Bad CRC-32 for file {damaged!r}")
        else:
            _list_tar(path)
    except DAMAGED as error:
        raise FewshotError(f"{path}: not a whole archive ({one_line(error)})") from error


def file_states(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Size in bytes and time of change in nanoseconds of each file, by which a changed source is recognised.

    Raises:
        FewshotError: a file cannot be read, such as a link that leads nowhere.
    """
    states, faults = [], []
    for path in paths:
        try:
            states.append(((stat := path.stat()).st_size, stat.st_mtime_ns))
        except OSError as error:
            faults.append(f"{error.filename}: cannot be read ({error.strerror})")
    raise_faults("files that cannot be read", faults, "mend it, or remove it")
    return states


@contextmanager
def open_checked(files: Files, name: str, remedy: str) -> Iterator[IO[bytes]]:
    """Open one file of a source. At the end it is read to its last byte, so that an archive compares its checksum.

    Raises:
        FewshotError: the file is a web page or damaged, or the block found its content unfit; followed by the remedy.
    """
    where = files.describe(name)
    try:
        with files.open(name) as file:
            if is_web_page(file.peek(512)):  # pyright: ignore
                raise FewshotError(f"{where}: a web page, not the file")
            yield file
            while file.read(1 << 20):
                pass
    except FewshotError as error:
        raise FewshotError(f"{error}; {remedy}") from error
    except UNFIT as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise FewshotError(f"{where}: cannot be read ({kind}{one_line(error)[:200]}); {remedy}") from error


def _list_folder(root: Path) -> Files:
    def stop(error: OSError) -> None:
        raise error  # os.walk skips a folder that may not be read

    names = []
    for path, folders, files in os.walk(root, onerror=stop, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name) and not _is_loop(Path(path, name)))
        inner = Path(path).relative_to(root).as_posix()
        names += [name if inner == "." else f"{inner}/{name}" for name in sorted(files) if name[0] != "."]

    return Files(root, names, lambda: nullcontext(lambda name: (root / name).open("rb")))


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder is hidden, or is a folder of a Mac's resource forks."""
    return name.startswith((".", "__MACOSX"))


def _is_loop(folder: Path) -> bool:
    """Whether the folder is a link to a folder that contains it, which os.walk would enter again and again."""
    return folder.is_symlink() and any(folder.samefile(above) for above in folder.parents)


def _list_zip(root: Path) -> Files:
    with zipfile.ZipFile(root) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
    own_name = {_zip_name(member): member.filename for member in members}
    member_of = _plain_names(root, list(map(_zip_name, members)))

    @contextmanager
    def session() -> Iterator[Callable[[str], IO[bytes]]]:
        with zipfile.ZipFile(root) as archive:
            yield lambda name: archive.open(own_name[member_of[name]])

    return Files(root, list(member_of), session)


def _zip_name(member: zipfile.ZipInfo) -> str:
    """The name of a member; many programs write UTF-8 without the flag that says so, which zipfile takes for cp437."""
    with suppress(UnicodeError):
        if not member.flag_bits & 0x800:
            return member.filename.encode("cp437").decode("utf-8")
    return member.filename


def _list_tar(root: Path) -> Files:
    members: dict[str, tarfile.TarInfo] = {}
    names = []
    with tarfile.open(root) as archive:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                raise FewshotError(f"{root}: {member.name}: a link or device, which no dataset has: refused")
            if member.isfile():
                names.append(member.name)
                members[member.name] = member
        # tarfile takes a damaged or missing header for the end of the archive, and does not read gzip's checksum.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        rest = archive.fileobj.read(tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("cut short")
        while rest:
            if rest.strip(b"\0"):
                raise tarfile.ReadError("a damaged member")
            rest = archive.fileobj.read(1 << 20)
    member_of = _plain_names(root, names)

    @contextmanager
    def session() -> Iterator[Callable[[str], Any]]:
        with tarfile.open(root) as archive:
            yield lambda name: archive.extractfile(members[member_of[name]])

    return Files(root, list(member_of), session)


def _plain_names(root: Path, members: list[str]) -> dict[str, str]:
    """The archive's own name of each member by its plain one: with slashes, without a leading "./", nothing hidden."""
    member_of: dict[str, str] = {}
    for member in members:
        path = PurePosixPath(member.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
            raise FewshotError(f"{root}: {member}: a member that leads out of the archive: refused")
        if path.as_posix() in member_of:
            raise FewshotError(f"{root}: holds {member} twice; fetch it again")
        member_of[path.as_posix()] = member
    return {name: member for name, member in member_of.items() if not any(map(is_hidden, name.split("/")))}
