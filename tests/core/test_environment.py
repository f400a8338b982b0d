"""The version and commit of the code, as records name them."""

from pathlib import Path
from typing import Any

import pytest

from fewshot.core import environment


def test_the_code_in_a_record_is_what_it_was_when_the_process_began(monkeypatch: pytest.MonkeyPatch) -> None:
    began = environment.code()

    def committed_meanwhile(*_: Any, **__: Any) -> str:
        return "another commit"

    monkeypatch.setattr(environment.subprocess, "check_output", committed_meanwhile)
    assert environment.code() == began and began["version"]


def test_code_that_is_not_installed_knows_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_version", lambda package: "absent")
    described = Path(environment.__file__).parents[2] / "pyproject.toml"
    assert f'version = "{environment.code.__wrapped__()["version"]}"' in described.read_text()


@pytest.mark.parametrize("project", ["", "[project]\nname = 'mine'\nversion = '7'", "[project]\nname = 'fewshot'"])
def test_code_inside_another_project_does_not_take_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: str
) -> None:
    monkeypatch.setattr(environment, "_version", lambda package: "absent")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "fewshot/core/environment.py"))
    (tmp_path / "pyproject.toml").write_text(project)
    assert environment.code.__wrapped__()["version"] == "absent"
