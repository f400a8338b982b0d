"""Files below a folder, wherever links lead, and files that are written whole."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fewshot.core.errors import FewshotError
from fewshot.core.files import check_output, find_below, write_atomically


def test_of_many_that_write_one_file_at_once_one_stands_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.01))  # so that they meet
    contents = [bytes([number]) * (1000 * number) for number in range(1, 17)]
    (tmp_path / "page.md.part").write_bytes(b"left by a process that was killed" * 1000)
    with ThreadPoolExecutor(8) as pool:  # a lock holds between open files, so threads are as good as processes
        list(pool.map(lambda content: write_atomically(tmp_path / "page.md", content), contents))
    assert (tmp_path / "page.md").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_a_file_system_without_locks_takes_files_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_atomically(tmp_path / "page.md", b"whole")
    assert (tmp_path / "page.md").read_bytes() == b"whole"


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "page.md").symlink_to("far/page.md")  # which may be there or not
    for content in (b"first", b"second"):
        write_atomically(tmp_path / "page.md", content)
        assert (tmp_path / "page.md").is_symlink() and (tmp_path / "far/page.md").read_bytes() == content
    assert len([*tmp_path.rglob("*")]) == 3


def test_an_output_is_a_file_or_nothing_yet(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("old")
    for name, said in (("pipe", "is a device or a pipe; name a file"), (".", "is a folder; name a file in it")):
        with pytest.raises(FewshotError, match=f"^out=.*: {said}$"):
            check_output("out", tmp_path / name)
    for name in ("file", "new"):
        check_output("out", tmp_path / name)


def test_a_folder_that_cannot_be_read_is_named_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    for place in ("closed", "open"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "record.json").touch()
    monkeypatch.setattr(os, "scandir", refuse)
    found, closed = find_below(tmp_path, "record.json")
    assert found == [tmp_path / "open/record.json"]
    assert closed == [f"{tmp_path}/closed: cannot be read (Permission denied)"]
    assert find_below(tmp_path / "nowhere", "record.json") == ([], [])


def test_files_are_found_behind_links_and_each_once(tmp_path: Path) -> None:
    for place in ("runs/a", "elsewhere/b/c"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "record.json").touch()
    (tmp_path / "runs/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs/0-latest").symlink_to(tmp_path / "runs/a")
    (tmp_path / "elsewhere/b/round").symlink_to(tmp_path / "runs")
    found, closed = find_below(tmp_path / "runs", "record.json")
    assert closed == []
    assert [path.relative_to(tmp_path / "runs").as_posix() for path in found] == [
        "a/record.json",
        "linked/b/c/record.json",
    ]
