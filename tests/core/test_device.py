"""Devices: which there are, and what they hold."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fewshot.core import device as module
from fewshot.core.device import count_cores, fits_on_device, peak_memory_bytes, pick_device
from fewshot.core.errors import FewshotError
from fewshot.core.progress import print_note


@pytest.mark.parametrize("name", ["meta", "mps", "cuda:77", "gpu"])
def test_a_device_that_is_not_there_or_keeps_no_scores_is_one_line(name: str) -> None:
    with pytest.raises(FewshotError, match=f"^device={name}: .*(use|choose) .*auto$") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_what_is_no_name_of_a_device_is_refused_and_none_is_auto() -> None:
    with pytest.raises(FewshotError, match="^device=1.5: not available here"):
        pick_device(1.5)  # type: ignore[arg-type]
    assert pick_device(None) == pick_device("auto")


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda size, device: asked.append(device) or zeros(size))
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        pick_device("auto")
    assert asked == ["cpu", "cuda"]


def test_half_of_a_gpus_free_memory_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    gpu = torch.device("cuda")
    assert fits_on_device(500, gpu) and not fits_on_device(501, gpu) and fits_on_device(501, torch.device("cpu"))


def test_only_the_cores_of_this_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, count in (({3}, 1), (set(range(64)), 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: cores, raising=False)
        assert count_cores() == count


def test_a_system_that_counts_no_peak_is_asked_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("VmSize: 7 kB\nVmRSS: 5 kB\n")
    monkeypatch.setattr(module, "_STATUS", tmp_path / "status")
    assert peak_memory_bytes(torch.device("cpu")) > 1e7


def test_processes_share_the_gpus_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def zeros(size: int, device: str) -> Any:
        return SimpleNamespace(device=torch.device(device))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch, "zeros", zeros)
    print_note.cache_clear()
    chosen = []
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        chosen.append(str(pick_device("cuda")))
    assert chosen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert capsys.readouterr().err == "note: 4 processes share 2 GPUs, which is seldom faster\n"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (str(pick_device("cuda")), str(pick_device("cuda:1")), str(pick_device("cpu"))) == ("cuda", "cuda:1", "cpu")
