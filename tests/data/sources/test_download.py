"""Downloads: from a server on this machine that breaks off, forgets ranges or sends something else."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.sources import download

from ..made_sources import serving

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(http.server.ThreadingHTTPServer):
    """Sends `content`, in whole or in part, with the faults that it is told to have."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.tags = CONTENT, {"ETag": '"one"'}
        self.ranges, self.status, self.cut = True, 200, -1  # cut: bytes after which each connection is closed
        self.lengths = True  # Content-Length is sent
        self.asked: list[str | None] = []  # the Range of each request
        self.url = f"http://127.0.0.1:{self.server_port}/file.zip"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked, content = self.server, self.headers["Range"], self.server.content
        server.asked.append(asked)
        if server.status != 200:
            return self.send_error(server.status)
        start = 0
        if server.ranges and asked and self.headers["If-Range"] in server.tags.values():
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        for name, value in server.tags.items():
            self.send_header(name, value)
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if server.cut < 0 else content[start : start + server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving(Server()) as server:
        yield server


def check(path: Path) -> None:
    if path.read_bytes() != CONTENT:
        raise FewshotError(f"{path}: not the content")


def fetch(server: Server, path: Path) -> bytes:
    download.fetch(server.url, path, check=check, what="the file")
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # no parts are left
    return path.read_bytes()


def fails(server: Server, path: Path, match: str) -> None:
    with pytest.raises(FewshotError, match=match) as caught:
        download.fetch(server.url, path, check=check, what="the file")
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
    assert fetch(server, path) == CONTENT and server.asked == [None]


@pytest.mark.parametrize("tags", [{"ETag": '"one"'}, {"ETag": 'W/"one"', "Last-Modified": "yesterday"}])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: Server, path: Path, tags: dict[str, str]):
    server.cut, server.tags = len(CONTENT) // 3, tags
    assert fetch(server, path) == CONTENT
    assert server.asked == [None] + [f"bytes={server.cut * times}-" for times in (1, 2, 3)]


def test_a_transfer_goes_on_in_the_next_call(server: Server, path: Path):
    part(path, CONTENT[:1000])
    assert fetch(server, path) == CONTENT and server.asked == ["bytes=1000-"]


def test_the_rest_of_another_version_is_not_put_behind_the_first_part(server: Server, path: Path):
    part(path, b"x" * 1000, '"zero"')
    assert fetch(server, path) == CONTENT and server.asked == ["bytes=1000-"]


def test_a_part_longer_than_the_other_version_is_cut(server: Server, path: Path):
    part(path, b"x" * (len(CONTENT) + 1000), '"zero"')
    assert fetch(server, path) == CONTENT


@pytest.mark.parametrize("version", [None, ""])
def test_a_part_of_unknown_version_is_begun_anew(server: Server, path: Path, version: str | None):
    part(path, b"x" * 1000, version)
    assert fetch(server, path) == CONTENT and server.asked == [None]


def test_a_server_that_knows_no_ranges_begins_anew(server: Server, path: Path):
    server.ranges = False
    part(path, CONTENT[:1000])
    assert fetch(server, path) == CONTENT and server.asked == ["bytes=1000-"]


def test_a_server_that_knows_no_ranges_and_always_breaks_off_is_given_up(server: Server, path: Path):
    server.ranges, server.cut = False, 5000
    fails(server, path, "5000 of 1048576 bytes came")
    assert len(server.asked) == 2


def test_a_part_that_was_whole_already_is_taken(server: Server, path: Path):
    part(path, CONTENT)
    assert fetch(server, path) == CONTENT and server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_beyond_the_end_is_begun_anew(server: Server, path: Path):
    part(path, CONTENT + b"x")
    assert fetch(server, path) == CONTENT and server.asked == [f"bytes={len(CONTENT) + 1}-", None]


def test_a_server_that_sends_nothing_is_given_up_and_the_part_is_kept(server: Server, path: Path):
    server.cut = 0
    made = part(path, CONTENT[:1000])
    fails(server, path, "1000 of 1048576 bytes came.*goes on where it stopped")
    assert made.read_bytes() == CONTENT[:1000]
    server.cut = -1
    assert fetch(server, path) == CONTENT and server.asked[-1] == "bytes=1000-"


def test_a_file_of_unsaid_length_is_left_to_the_check(server: Server, path: Path):
    server.lengths = False
    assert fetch(server, path) == CONTENT


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>sign in</html>", CONTENT[:-1], b""])
def test_what_is_not_the_file_is_refused_and_thrown_away(server: Server, path: Path, content: bytes):
    server.content = content
    fails(server, path, "file.zip.part: not the content: fetch the file again, or")
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_an_error_of_the_server_is_said_in_one_line(server: Server, path: Path, status: int):
    server.status = status
    fails(server, path, f"fetching the file failed .*{status}")
    assert not list(path.parent.iterdir())


def test_a_server_that_is_not_there_is_said_in_one_line(server: Server, path: Path):
    server.url = "http://127.0.0.1:9/file.zip"
    fails(server, path, "fetching the file failed .*refused")


def test_a_folder_that_cannot_be_made_is_said_in_one_line(server: Server, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FewshotError, match="cannot be written .*a file is in the way: remove it, or choose"):
        download.fetch(server.url, tmp_path / "file" / "file.zip", check=check, what="the file")


def test_two_at_once_fetch_one_file_once(server: Server, path: Path):
    threads = [
        threading.Thread(target=download.fetch, args=(server.url, path), kwargs={"check": check, "what": "the file"})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT and server.asked == [None]
    assert [each.name for each in path.parent.iterdir()] == ["file.zip"]
