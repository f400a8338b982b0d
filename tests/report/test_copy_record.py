"""Copies of records: what they replace, what they keep, and where none may be made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fewshot.core.errors import FewshotError
from fewshot.report.copy_record import check_copy, copy_record
from fewshot.report.records import read_record


def test_a_copy_keeps_the_test_of_another_checkpoint_and_replaces_that_of_another_training(
    lab: Any, tmp_path: Path
) -> None:
    run, kept = tmp_path / "runs/task/run", tmp_path / "kept/task/run"
    lab.write("runs/task/run/tests/common", train__fingerprint="a" * 64)
    last = {"train__fingerprint": "b" * 64, "protocol__selection": "last"}
    lab.write("kept/task/run/tests/common-last", **last)
    lab.write("kept/task/run/tests/older-last", **last, cost__train_seconds=1.0)
    lab.write("kept/task/run/tests/paper", train__fingerprint="b" * 64)
    copy_record(run / "tests/common", kept)
    assert sorted(path.parent.name for path in kept.rglob("record.json")) == ["common", "common-last"]
    assert read_record(kept / "tests/common/record.json")["train"]["fingerprint"] == "a" * 64


def test_a_run_that_is_copied_onto_itself_keeps_all_of_its_curve(lab: Any, tmp_path: Path) -> None:
    lab.write("run/tests/common")
    curve = tmp_path / "run/metrics.jsonl"
    curve.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "validation_accuracy": 0.5}\n')
    before = curve.read_text()
    copy_record(tmp_path / "run/tests/common", tmp_path / "other/../run")
    assert curve.read_text() == before
    copy_record(tmp_path / "run/tests/common", tmp_path / "kept")
    assert (tmp_path / "kept/metrics.jsonl").read_text() == before.splitlines(keepends=True)[1]


def test_a_place_with_records_of_another_run_or_that_is_no_folder_is_refused(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.write("kept/tests/common")
    record = read_record(tmp_path / "kept/tests/common/record.json")
    check_copy(tmp_path / "kept", record["config"], record["seed"])
    with pytest.raises(FewshotError, match="holds a record of another run, .* copy to another folder by copy_records_"):
        check_copy(tmp_path / "kept", record["config"], record["seed"] + 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # as root everything may be written
        with pytest.raises(FewshotError, match="kept: cannot be written to; choose another folder by copy_records_to"):
            check_copy(tmp_path / "kept/new", record["config"], record["seed"])
    (tmp_path / "file").touch()
    with pytest.raises(FewshotError, match="file: cannot be written to; choose another folder by copy_records_to"):
        check_copy(tmp_path / "file/task/run", record["config"], record["seed"])
