"""Sources: the same files from a folder and from any archive; what leads out or is damaged is refused."""

import gzip
import io
import os
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.sources import archives
from fewshot.data.sources.archives import DAMAGED, Files, check_archive, open_files

from ..made_sources import as_archive, as_folder

KINDS = ("folder", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
ARCHIVES = KINDS[1:]
# In an order that is not sorted.
MEMBERS = {
    "set/b/2.png": b"two",
    "set/b/1.png": b"one" * 700,
    "set/a/Ünïcode 漢字.png": b"",
    "readme.txt": b"words",
    "set/a/1.png": np.random.RandomState(0).bytes(3000),
}
HIDDEN = {
    ".DS_Store": b"",
    "set/.git/config": b"",
    "set/b/._1.png": b"",
    "__MACOSX/set/b/1.png": b"fork",
    "set/__MACOSX/1.png": b"fork",
}


def member(name: str, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def packed(root: Path, kind: str, members: dict[str, bytes] = MEMBERS) -> Path:
    """A folder or archive of these members, in this order."""
    path = root / f"source.{kind}"
    return as_folder(path, members) if kind == "folder" else as_archive(path, members)


def contents(source: Files) -> dict[str, bytes]:
    return dict(zip(source.names, source.read(source.names), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_has_the_same_files(tmp_path: Path, kind: str):
    source = open_files(packed(tmp_path, kind, HIDDEN | MEMBERS))
    assert source.names == (
        ["readme.txt", "set/a/1.png", "set/a/Ünïcode 漢字.png", "set/b/1.png", "set/b/2.png"]
        if kind == "folder"
        else list(MEMBERS)
    )
    assert contents(source) == MEMBERS
    for name, data in MEMBERS.items():
        with source.open(name) as file:
            assert file.read(2) == data[:2] and file.read() == data[2:]


@pytest.mark.parametrize("kind", KINDS)
def test_reading_begins_anywhere_and_leaves_out_what_is_not_wanted(tmp_path: Path, kind: str):
    source = open_files(packed(tmp_path, kind))
    for wanted in (source.names[2:], source.names[1::2], source.names[::-1], []):
        assert list(source.read(wanted)) == [MEMBERS[name] for name in wanted]
    two = [source.read(source.names), source.read(source.names)]
    assert [[next(each) for each in two] for _ in source.names] == [[MEMBERS[name]] * 2 for name in source.names]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_with_a_dot_or_backslashes_before_are_as_plain_as_any(tmp_path: Path, kind: str):
    path = packed(tmp_path, kind, {"./set/a/1.png": b"a1", "set\\b\\1.png": b"b1", "./.hidden/x": b"", "./x.png": b"x"})
    source = open_files(path)
    assert contents(source) == {"set/a/1.png": b"a1", "set/b/1.png": b"b1", "x.png": b"x"}
    with source.open("set/b/1.png") as file:
        assert file.read() == b"b1"


def test_names_in_utf8_without_the_flag_of_a_zip_are_read_right(tmp_path: Path):
    plain, path = packed(tmp_path, "zip", {"set/Grünfink/1.png": b"g"}), tmp_path / "unflagged.zip"
    data = bytearray(plain.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + place + 1] &= ~0x08  # bit 11 of the flags
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert "Grünfink" not in archive.namelist()[0]
    assert contents(open_files(path)) == {"set/Grünfink/1.png": b"g"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../x.png", "set/../../x.png", "C:\\x.png", "..\\x.png"])
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path: Path, kind: str, name: str):
    refused(packed(tmp_path, kind, {"set/a.png": b"", name: b"x"}), "leads out of the archive: refused")


LINKS = {
    "symlink": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": "set/a/1.png"},
    "character device": {"type": tarfile.CHRTYPE},
    "pipe": {"type": tarfile.FIFOTYPE},
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_or_device_in_a_tar_is_refused(tmp_path: Path, kind: str):
    path = packed(tmp_path, "tar")
    with tarfile.open(path, "a") as archive:
        archive.addfile(member("set/c.png", **LINKS[kind]))
    refused(path, "set/c.png: a link or device, which no dataset has: refused")


@pytest.mark.parametrize("again", ["set/a.png", "./set/a.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_twice_is_refused(tmp_path: Path, kind: str, again: str):
    path = packed(tmp_path, kind, {"set/a.png": b"1"})
    if kind == "tar":
        with tarfile.open(path, "a") as archive:
            archive.addfile(member(again, size=1), io.BytesIO(b"2"))
    else:
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
            archive.writestr(again, b"2")
    refused(path, "a.png twice; fetch it again")


def refused(path: Path, message: str) -> None:
    with pytest.raises(FewshotError, match=message) as caught:
        open_files(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "rar", ""])
def test_a_web_page_in_place_of_an_archive_is_named(tmp_path: Path, kind: str):
    path = tmp_path / f"archive.{kind}".rstrip(".")
    path.write_bytes(b"\n<!DOCTYPE html>\n<html><title>Google Drive - Quota exceeded</title></html>")
    refused(path, "a web page, not an archive: the download went wrong; fetch it by hand")


@pytest.mark.parametrize("name", ["a.rar", "a", "a.zip.part"])
def test_what_is_no_archive_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"Rar!\x1a\x07\x00")
    refused(tmp_path / name, r"give a folder, or an archive \(.zip, .tar, ")


def test_what_is_not_there_is_refused(tmp_path: Path):
    refused(tmp_path / "a.zip", "no such file or folder")
    (tmp_path / "link").symlink_to("nowhere")
    refused(tmp_path / "link", "no such file or folder")


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("data", [b"", b"PK", b"\x1f\x8b\x08", b"text" * 200])
def test_what_only_has_an_archives_name_is_refused(tmp_path: Path, kind: str, data: bytes):
    (tmp_path / f"a.{kind}").write_bytes(data)
    refused(tmp_path / f"a.{kind}", r"not a whole archive \(.+\); fetch it again")


def test_an_archive_is_known_by_a_name_in_capitals_and_by_its_content(tmp_path: Path):
    assert contents(open_files(packed(tmp_path, "zip").rename(tmp_path / "DATA.ZIP"))) == MEMBERS
    assert contents(open_files(packed(tmp_path, "tar").rename(tmp_path / "data.TGZ"))) == MEMBERS


def outcome(path: Path) -> dict[str, bytes] | None:
    """The contents of an archive, or None if it is refused at any time."""
    try:
        return contents(open_files(path))
    except (FewshotError, *DAMAGED):
        return None


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_cut_anywhere_is_refused_at_the_start(tmp_path: Path, kind: str):
    path = packed(tmp_path, kind)
    data = path.read_bytes()
    # After its last member a plain tar may be cut, if one block of zeros is left.
    end = len(data)
    if kind == "tar":
        with tarfile.open(path) as archive:
            end = [each.offset_data for each in archive][-1] + 3072 + 512
    for size in {*range(0, end, max(1, end // 20)), *range(max(0, end - 8), end), *range(0, end, 512)}:
        path.write_bytes(data[:size])
        refused(path, "not a whole archive")


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_with_a_damaged_byte_is_refused_or_read_right(tmp_path: Path, kind: str):
    path, random = packed(tmp_path, kind), np.random.RandomState(len(kind))
    data = path.read_bytes()
    refusals = 0
    for _ in range(40):
        damaged = bytearray(data)
        damaged[random.randint(len(data))] ^= 1 << random.randint(8)
        path.write_bytes(damaged)
        found = outcome(path)
        refusals += found is None
        if kind == "tar":  # has a checksum of its headers alone
            assert found is None or list(found) == list(MEMBERS)
        else:
            assert found in (None, MEMBERS)
    assert refusals > 5


def test_a_tar_with_a_hole_is_refused(tmp_path: Path):
    path = packed(tmp_path, "tar")
    with tarfile.open(path) as archive:
        hole = archive.getmember("readme.txt").offset
    data = path.read_bytes()
    path.write_bytes(data[:hole] + bytes(512) + data[hole + 512 :])
    refused(path, "not a whole archive")


def test_gzip_is_read_to_its_checksum(tmp_path: Path):
    path = packed(tmp_path, "tar.gz")
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    refused(path, "not a whole archive .*CRC")
    path.write_bytes(gzip.compress(gzip.decompress(packed(tmp_path, "tgz").read_bytes())) + bytes(100))
    assert contents(open_files(path)) == MEMBERS


def test_a_zip_member_with_another_checksum_is_found_when_it_is_read(tmp_path: Path):
    path = as_archive(tmp_path / "a.zip", {"1.png": b"first", "2.png": b"second"})
    path.write_bytes(path.read_bytes().replace(b"second", b"sekond"))
    reading = open_files(path).read(["1.png", "2.png"])
    assert next(reading) == b"first"
    with pytest.raises(DAMAGED, match="CRC-32 for file '2.png'"):
        next(reading)
    with pytest.raises(FewshotError, match="a.zip: not a whole archive .Bad CRC-32 for file '2.png'"):
        check_archive(path)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_file_too_large_is_refused_and_not_cut(tmp_path: Path, kind: str, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 2100)
    source = open_files(packed(tmp_path, kind))
    assert list(source.read(["set/b/1.png"])) == [MEMBERS["set/b/1.png"]]
    monkeypatch.setattr(archives, "MAX_BYTES", 2099)
    with pytest.raises(DAMAGED, match="more than 2,099 bytes"):
        list(source.read(["set/b/1.png"]))


def test_links_in_a_folder_are_followed_but_not_in_loops(tmp_path: Path):
    source, outside = packed(tmp_path, "folder"), tmp_path / "outside"
    outside.mkdir()
    (outside / "3.png").write_bytes(b"three")
    (source / "set/c").symlink_to(outside)
    (source / "set/d.png").symlink_to(outside / "3.png")
    (outside / "back").symlink_to(source)
    for name, target in (("round", "."), ("set/up", "../.."), ("set/a/b", "../b"), ("set/b/a", "../a")):
        (source / name).symlink_to(target)
    names = open_files(source).names
    assert names[:3] == ["readme.txt", "set/d.png", "set/a/1.png"] and names[-1] == "set/c/3.png"
    assert [name for name in names if name.count("/") == 3] == [
        *("set/a/b/1.png", "set/a/b/2.png", "set/b/a/1.png", "set/b/a/Ünïcode 漢字.png"),
    ]
    assert len(names) == 11


def test_what_may_not_be_read_is_named_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, archive = packed(tmp_path, "folder"), packed(tmp_path, "zip")
    true_scandir, closed = os.scandir, str(source / "set/b")

    def scandir(path: str) -> Any:
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return true_scandir(path)

    def list_zip(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(archives, "_list_zip", list_zip)
    refused(source, "^.*source.folder/set/b: may not be read; change its permissions$")
    refused(archive, "may not be read; change its permissions")


def test_a_file_is_described_on_one_line(tmp_path: Path):
    folder, archive = open_files(packed(tmp_path, "folder")), open_files(packed(tmp_path, "zip"))
    assert folder.describe("set/a/Ünïcode 漢字.png") == f"{tmp_path}/source.folder/set/a/Ünïcode 漢字.png"
    assert archive.describe("set/b/1.png") == f"{tmp_path}/source.zip: set/b/1.png"
    assert archive.describe("set/a\nb\x1b[31m\udcff.png") == f"{tmp_path}/source.zip: set/a?b?[31m?.png"
