"""The version and commit of the code, as records name them."""

from pathlib import Path

import pytest
import torch

from fewshot.core import environment


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


def test_the_vector_instructions_are_named_beside_the_processor() -> None:
    found = environment.environment()
    assert found["processor"]
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
