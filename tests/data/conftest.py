"""Folders for a reader, and a local server to download from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .made_sources import Server, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The source of a reader; it does not exist yet."""
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where a reader keeps its banks; it does not exist yet."""
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server without files."""
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server
