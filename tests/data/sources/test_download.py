"""Downloads: from a server on this machine that breaks off, forgets ranges or sends something else."""

import threading
from pathlib import Path

import pytest

from fewshot.core.errors import FewshotError
from fewshot.core.files import lock_file
from fewshot.data.sources import download

from ..made_sources import Server

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def server(server: Server) -> Server:
    server.files, server.tags = {"file.zip": CONTENT}, {"ETag": '"one"'}
    server.url += "/file.zip"
    return server


def check(path: Path) -> None:
    if path.read_bytes() != CONTENT:
        raise FewshotError(f"{path}: not the content")


def fetch(server: Server, path: Path) -> bytes:
    download.fetch(server.url, path, check=check)
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # no parts are left
    return path.read_bytes()


def fails(server: Server, path: Path, match: str) -> None:
    with pytest.raises(FewshotError, match=match) as caught:
        download.fetch(server.url, path, check=check)
    text = str(caught.value)
    assert "\n" not in text and f"download {server.url} by hand to {path}" in text
    assert not path.exists()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "file.zip"


def part(path: Path, content: bytes, version: str | None = '"one"') -> Path:
    """What a transfer that was cut off has left."""
    path.parent.mkdir(parents=True)
    made = path.with_name("file.zip.part")
    made.write_bytes(content)
    if version is not None:
        path.with_name("file.zip.part.version").write_text(version)
    return made


def test_a_file_is_fetched_and_nothing_else_is_left(server: Server, path: Path):
    assert fetch(server, path) == CONTENT and server.ranges == [None]


@pytest.mark.parametrize("tags", [{"ETag": '"one"'}, {"ETag": 'W/"one"', "Last-Modified": "yesterday"}])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: Server, path: Path, tags: dict[str, str]):
    server.cut, server.tags = len(CONTENT) // 3, tags
    assert fetch(server, path) == CONTENT
    assert server.ranges == [None] + [f"bytes={server.cut * times}-" for times in (1, 2, 3)]


def test_a_transfer_goes_on_in_the_next_call(server: Server, path: Path):
    part(path, CONTENT[:1000])
    assert fetch(server, path) == CONTENT and server.ranges == ["bytes=1000-"]


def test_the_rest_of_another_version_is_not_put_behind_the_first_part(server: Server, path: Path):
    part(path, b"x" * 1000, '"zero"')
    assert fetch(server, path) == CONTENT and server.ranges == ["bytes=1000-"]


def test_a_part_longer_than_the_other_version_is_cut(server: Server, path: Path):
    part(path, b"x" * (len(CONTENT) + 1000), '"zero"')
    assert fetch(server, path) == CONTENT


@pytest.mark.parametrize("version", [None, ""])
def test_a_part_of_unknown_version_is_begun_anew(server: Server, path: Path, version: str | None):
    part(path, b"x" * 1000, version)
    assert fetch(server, path) == CONTENT and server.ranges == [None]


def test_a_server_that_knows_no_ranges_begins_anew(server: Server, path: Path):
    server.knows_ranges = False
    part(path, CONTENT[:1000])
    assert fetch(server, path) == CONTENT and server.ranges == ["bytes=1000-"]


def test_a_server_that_knows_no_ranges_and_always_breaks_off_is_given_up(server: Server, path: Path):
    server.knows_ranges, server.cut = False, 5000
    fails(server, path, "5000 of 1048576 bytes came")
    assert len(server.ranges) == 2


def test_a_part_that_was_whole_already_is_taken(server: Server, path: Path):
    part(path, CONTENT)
    assert fetch(server, path) == CONTENT and server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_part_beyond_the_end_is_begun_anew(server: Server, path: Path):
    part(path, CONTENT + b"x")
    assert fetch(server, path) == CONTENT and server.ranges == [f"bytes={len(CONTENT) + 1}-", None]


def test_a_server_that_sends_nothing_is_given_up_and_the_part_is_kept(server: Server, path: Path):
    server.cut = 0
    made = part(path, CONTENT[:1000])
    fails(server, path, "1000 of 1048576 bytes came.*goes on where it stopped")
    assert made.read_bytes() == CONTENT[:1000]
    server.cut = -1
    assert fetch(server, path) == CONTENT and server.ranges[-1] == "bytes=1000-"


def test_a_file_of_unsaid_length_is_left_to_the_check(server: Server, path: Path):
    server.sends_length = False
    assert fetch(server, path) == CONTENT


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>sign in</html>", CONTENT[:-1], b""])
def test_what_is_not_the_file_is_refused_and_thrown_away(server: Server, path: Path, content: bytes):
    server.files["file.zip"] = content
    fails(server, path, "file.zip.part: not the content: fetch file.zip again, or")
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_an_error_of_the_server_is_said_in_one_line(server: Server, path: Path, status: int):
    server.status = status
    fails(server, path, f"fetching file.zip failed .*{status}")
    assert not list(path.parent.iterdir())


def test_a_server_that_is_not_there_is_said_in_one_line(server: Server, path: Path):
    server.url = "http://127.0.0.1:9/file.zip"
    fails(server, path, "fetching file.zip failed .*refused")


def test_a_part_that_its_holder_removed_is_not_what_the_next_one_fills(server: Server, path: Path):
    holder = lock_file(part(path, b""))
    thread = threading.Thread(target=download.fetch, args=(server.url, path), kwargs={"check": check}, daemon=True)
    thread.start()
    thread.join(0.2)  # it waits for the lock
    assert thread.is_alive() and server.ranges == []
    path.with_name("file.zip.part").unlink()
    holder.close()
    thread.join(60)
    assert path.read_bytes() == CONTENT and [each.name for each in path.parent.iterdir()] == ["file.zip"]


def test_two_at_once_fetch_one_file_once(server: Server, path: Path):
    threads = [
        threading.Thread(target=download.fetch, args=(server.url, path), kwargs={"check": check}) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT and server.ranges == [None]
    assert [each.name for each in path.parent.iterdir()] == ["file.zip"]
