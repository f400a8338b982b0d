"""Signs of life of long work."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from fewshot.core import progress
from fewshot.core.progress import progress_bar, show_training


def test_without_a_terminal_there_is_a_line_at_the_start_and_then_one_at_each_interval(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    with progress_bar("work", 10, done=2) as advance:
        time.sleep(0.15)  # nothing is done, and there is a line all the same
        for _ in range(4):
            advance("half way")
        time.sleep(0.15)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "work: starts, 2 of 10"
    assert lines[0] == "work: 2 of 10, 0:00 so far"
    assert lines[-1].startswith("work: 6 of 10, half way, 0:0")
    assert lines[-1].endswith(" left")


def test_work_of_unknown_length_and_of_parts_has_whole_numbers_and_no_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    with progress_bar("work", 0) as advance:
        advance("", 345.61062)
        out, end = "", time.monotonic() + 10
        while "so far" not in out and time.monotonic() < end:
            time.sleep(0.01)
            out += capsys.readouterr().out
    assert re.search(r"^work: 346 of 0, \d:\d\d so far$", out, re.MULTILINE)


def test_lines_that_nobody_reads_any_more_are_no_error(monkeypatch: pytest.MonkeyPatch):
    class Unread(io.StringIO):
        tried = 0

        def write(self, text: str) -> int:
            self.tried += 1
            raise BrokenPipeError

    monkeypatch.setattr(progress, "SECONDS", 0.02)
    with progress_bar("work", 10):  # an exception in its thread would fail the test
        monkeypatch.setattr(sys, "stdout", unread := Unread())
        time.sleep(0.1)
    assert unread.tried


def test_short_work_is_one_line(capsys: pytest.CaptureFixture[str]):
    with progress_bar("work", 1) as advance:
        advance()
    assert capsys.readouterr().out == "work: starts, 0 of 1\n"


def test_a_narrow_terminal_shows_a_bar_in_place_of_lines_and_keeps_the_count_and_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar("protonet pictures 3-way 1-shot", 300, 59) as advance:
        advance("accuracy 100.0%, validation 60.1%, 39 tasks/s")
    shown = capsys.readouterr().out
    last = shown.rpartition("protonet")[2]
    assert "starts" not in shown
    assert "60/300" in last and "-:--:--" in last and "accur" in last


def test_training_lines_have_step_score_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    tracked = []
    with show_training(lambda metrics, step: tracked.append(step), "maml", 100, 0, 4, 10) as show:
        show(1, {"outer_lr": 0.1, "accuracy": 0.25})
        show(2, {"outer_lr": 0.1, "accuracy": 0.5, "validation_accuracy": 0.375})
        time.sleep(0.15)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("maml: 2 of 100, accuracy 50.0%, validation 37.5%, ")
    assert " tasks/s, 0:" in line
    with show_training(lambda metrics, step: tracked.append(step), "maml", 15, 0, 4, 10) as show:
        for step in range(1, 16):
            show(step, {"outer_lr": 0.1})
    assert tracked == [2, 10, 15]  # a validation; as often as is asked for, and the end
    with show_training(lambda metrics, step: None, "protonet", 100, 0, 4, 10, "15-way") as show:
        show(1, {"outer_lr": 0.1, "accuracy": 0.25})
        time.sleep(0.15)
    assert "protonet: 1 of 100, 15-way accuracy 25.0%, " in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.7, "1:00"), (754, "12:34"), (7384, "2:03:04")])
def test_a_duration_is_in_minutes_and_seconds(seconds: float, text: str):
    assert progress._duration(seconds) == text
