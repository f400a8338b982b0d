"""Helpers for tests of readers: images of noise, folders and archives of files, a local server, hostile pickles."""

import http.server
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank

WEB_PAGE = b"\n<!DOCTYPE html><html>Sign in</html>"


def noise(seed: int | Sequence[int], height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8, different for each seed."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """The image file of an array [height, width, 3] uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def as_folder(root: Path, files: dict[str, bytes]) -> Path:
    """Write files by their paths below the root."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def as_archive(path: Path, files: dict[str, bytes]) -> Path:
    """Write files to an uncompressed zip, or to a tar with the compression of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    kind = path.suffix.removeprefix(".").replace("tgz", "gz").replace("tar", "")
    with tarfile.open(path, f"w:{kind}") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def as_zip(root: Path, files: dict[str, bytes]) -> Path:
    """A zip beside the root."""
    return as_archive(root.with_suffix(".zip"), files)


def as_tar(root: Path, files: dict[str, bytes]) -> Path:
    """A compressed tar beside the root."""
    return as_archive(root.with_suffix(".tar.gz"), files)


def fingerprints(banks: dict[str, Bank]) -> list[str]:
    return [bank.fingerprint for bank in banks.values()]


def refused_by(read: Callable[..., Any], root: Path, cache: Path, match: str, **choices: Any) -> str:
    """The reader's error, which is one line of bearable length; no bank is left behind."""
    with pytest.raises(FewshotError, match=match) as caught:
        read(root, cache, **choices)
    text = str(caught.value)
    assert "\n" not in text and len(text.replace(str(root.parent), "")) < 600
    assert not list(cache.glob("*/bank.json"))
    return text


class Attack:
    """Its pickle asks for a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


class Server(http.server.ThreadingHTTPServer):
    """Sends its `files`, which are below `url`, with the faults that a test sets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}/files"
        self.asked: list[str] = []  # names of the requests
        self.ranges: list[str | None] = []  # Range of the requests
        self.tags: dict[str, str] = {}  # such as an ETag
        self.status = 200
        self.cut = -1  # bytes after which each connection is closed
        self.knows_ranges = self.sends_length = True


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        server, name, asked = self.server, self.path.removeprefix("/files/"), self.headers["Range"]
        server.asked.append(name)
        server.ranges.append(asked)
        if name not in server.files or server.status != 200:
            return self.send_error(404 if server.status == 200 else server.status)
        content, start = server.files[name], 0
        if server.knows_ranges and asked and self.headers["If-Range"] in server.tags.values():
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            is_beyond = start >= len(content)
            self.send_response(416 if is_beyond else 206)
            rest = "*" if is_beyond else f"{start}-{len(content) - 1}"
            self.send_header("Content-Range", f"bytes {rest}/{len(content)}")
            if is_beyond:
                return self.end_headers()
        else:
            self.send_response(200)
        for tag, value in server.tags.items():
            self.send_header(tag, value)
        if server.sends_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if server.cut < 0 else content[start : start + server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server that answers in a thread for the length of the block."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
