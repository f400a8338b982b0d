"""What the tests of readers share: images of noise, a folder or an archive of files, a server of them, a refusal."""

import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from fewshot.core.errors import FewshotError

S = TypeVar("S", bound=http.server.ThreadingHTTPServer)


def noise(seed: int | Sequence[int], height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8, another one for each seed."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """The file of an image [height, width, 3] uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def as_folder(root: Path, files: dict[str, bytes]) -> Path:
    """Files by their paths below the root, beside what is there."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def as_archive(path: Path, files: dict[str, bytes]) -> Path:
    """The same in a zip or a tar, by the suffix of the path; a zip is not packed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.suffix in (".tgz", ".gz") else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def refused_by(read: Callable[..., Any], root: Path, cache: Path, match: str, **choices: Any) -> str:
    """The reader's error, which is one line of bearable length and leaves no bank behind."""
    with pytest.raises(FewshotError, match=match) as caught:
        read(root, cache, **choices)
    text = str(caught.value)
    assert "\n" not in text and len(text.replace(str(root.parent), "")) < 500
    assert not list(cache.glob("*/bank.json"))
    return text


class Server(http.server.ThreadingHTTPServer):
    """Sends its `files`, which lie below `url`, and notes the names that it is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/files"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        name = self.path.removeprefix("/files/")
        self.server.asked.append(name)
        if name not in self.server.files:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.files[name])))
        self.end_headers()
        self.wfile.write(self.server.files[name])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(server: S) -> Iterator[S]:
    """It answers in a thread of its own as long as the block lasts."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
