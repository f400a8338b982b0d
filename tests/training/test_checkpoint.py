"""Checkpoints: what comes back, and what is refused."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.training.checkpoint import check_state, load_checkpoint, save_checkpoint


def test_tensors_and_state_come_back_to_the_bit(tmp_path: Path) -> None:
    params = {"a.weight": torch.randn(3, 2, dtype=torch.float64), "b": torch.tensor(7)}
    save_checkpoint(tmp_path / "c/last.safetensors", {"params": params, "state": {}}, {"step": 3, "best": None})
    groups, header = load_checkpoint(tmp_path / "c/last.safetensors", "cpu")
    assert header == {"step": 3, "best": None}
    assert groups.keys() == {"params"}
    for name, value in params.items():
        assert groups["params"][name].dtype == value.dtype
        assert groups["params"][name].equal(value)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["last.safetensors"]  # no scratch file stays


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"params": {"a": torch.ones(1000)}}, {})
    for length in (0, 5, 100, path.stat().st_size - 1):
        cut = tmp_path / f"cut{length}"
        cut.write_bytes(path.read_bytes()[:length])
        with pytest.raises(FewshotError, match="damaged"):
            load_checkpoint(cut, "cpu")


def test_a_foreign_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (pytest.fail, ("unpickled",))

    (tmp_path / "pickle").write_bytes(pickle.dumps(Trap()))
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    for name in ("pickle", "other.safetensors"):
        with pytest.raises(FewshotError, match="not a checkpoint of this project"):
            load_checkpoint(tmp_path / name, "cpu")
    with pytest.raises(FewshotError, match="no checkpoint there"):
        load_checkpoint(tmp_path / "absent", "cpu")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    here = {"a": torch.ones(2), "b": torch.ones(3)}
    assert list(check_state(tmp_path, {"b": here["b"], "a": here["a"]}, here)) == ["a", "b"]
    for found in ({"a": torch.ones(2)}, here | {"c": torch.ones(1)}, here | {"b": torch.ones(4)}):
        with pytest.raises(FewshotError, match="another algorithm or backbone"):
            check_state(tmp_path, found, here)


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(FewshotError, match=r"file: cannot be written \(disk full\); make room"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["file"]
