"""Where a reader reads from and keeps its banks, and a server to fetch from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .made_sources import Server, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Not made yet."""
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Not made yet."""
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Without files."""
    monkeypatch.setenv("no_proxy", "*")
    with serving(Server()) as server:
        yield server
