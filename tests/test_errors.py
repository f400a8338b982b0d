"""Files that cannot be written: the remedy is for the very reason."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError, writing
from fewshot.core.files import lock_dir, write_atomically
from fewshot.data.bank import Split, write_banks
from fewshot.data.sources import convert, download
from fewshot.data.sources.images import ImageSpec
from fewshot.data.sources.parts import part_of_labels

REMEDIES = {
    errno.ENOSPC: "make room, then the same command goes on",
    errno.EDQUOT: "make room, then the same command goes on",
    errno.EFBIG: "make room, then the same command goes on",
    errno.EACCES: "change its permissions, or choose another",
    errno.EPERM: "change its permissions, or choose another",
    errno.EROFS: "choose another",
    errno.ENOTDIR: "a file is in the way: remove it, or choose another",
    errno.EIO: "choose another",
    errno.ENAMETOOLONG: "choose another",
}


def write_a_bank(place: Path) -> None:
    write_banks(place, {"train": Split(np.zeros((1, 2), np.float32), [1], ["a"])}, {})


def convert_images(place: Path) -> None:
    part = part_of_labels(["a"], np.zeros(1, int), lambda i: iter([np.zeros((2, 2), np.uint8)]), str)
    convert.convert(place, {"train": part}, ImageSpec(2), {})


def hold(place: Path) -> None:
    with lock_dir(place):
        pass


WRITERS: dict[str, Any] = {
    "write_atomically": lambda place: write_atomically(place / "file", b""),
    "lock_dir": hold,
    "write_banks": write_a_bank,
    "convert": convert_images,
    "fetch": lambda place: download.fetch("http://127.0.0.1:9", place / "f", check=lambda path: None),
}


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
def test_the_remedy_is_for_the_reason(code: int) -> None:
    with pytest.raises(FewshotError) as caught, writing("there", "another folder"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value).startswith(f"there: cannot be written ({os.strerror(code)}); {REMEDIES[code]}")
    assert ("make room" in str(caught.value)) == (code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_it(tmp_path: Path, writer: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(FewshotError, match=rf"cannot be written \({os.strerror(code)}\); {REMEDIES[code]}"):
        WRITERS[writer](tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_in_place_of_a_folder_is_said(tmp_path: Path, writer: str) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(FewshotError, match="cannot be written .*a file is in the way"):
        WRITERS[writer](tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_lock_that_the_system_does_not_know_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    flags = {name: getattr(fcntl, name) for name in ("LOCK_EX", "LOCK_NB")}
    monkeypatch.setattr("fewshot.core.files.fcntl", SimpleNamespace(flock=refuse, **flags))
    with pytest.raises(FewshotError, match="cannot be written .No locks available.; choose another run_dir"):
        hold(tmp_path / "run")
