"""Where an error came from."""

from __future__ import annotations

import runpy
import statistics
from pathlib import Path

import pytest

from fewshot.core.errors import error_location


@pytest.mark.parametrize("call", ["statistics.mean([])", "1 / 0", "torch.zeros(2) @ torch.zeros(3)"])
def test_an_error_is_located_in_the_persons_own_file_wherever_it_was_raised(tmp_path: Path, call: str) -> None:
    (tmp_path / "mine.py").write_text(f"import statistics\nimport torch\n{call}\n")
    with pytest.raises(Exception) as found:
        runpy.run_path(str(tmp_path / "mine.py"))
    assert error_location(found.value) == "mine.py:3"


def test_an_error_that_no_file_of_a_persons_own_led_to_has_no_location() -> None:
    with pytest.raises(statistics.StatisticsError) as found:
        statistics.mean([])
    error = found.value
    assert error.__traceback__ is not None
    assert error_location(error).startswith("test_errors.py:")
    assert error_location(error.with_traceback(error.__traceback__.tb_next)) == ""
