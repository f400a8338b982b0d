"""The installed package: what a wheel holds is enough for the tools and for type checkers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fewshot

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the wheel where pyproject.toml puts them."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    target = tmp_path_factory.mktemp("site")
    for name in wheel["only-include"]:
        top, _, rest = name.partition("/")
        place = target / wheel["sources"].get(top, top) / rest
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / name, place)
    return target


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_an_installed_package_brings_its_configuration_and_published_figures(installed: Path, tmp_path: Path) -> None:
    program = (
        "import fewshot, sys; from fewshot.core.paths import CONF; from fewshot.report.published import read_published;"
        "print(fewshot.__file__, CONF, len(read_published()) > 50, 'torch' in sys.modules)"
    )
    done = run(installed, tmp_path, "-c", program)
    assert done.stdout.split() == [
        str(installed / "fewshot/__init__.py"),
        str(installed / "fewshot/conf"),
        "True",
        "False",
    ]


def test_the_tools_of_an_installed_package_run(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "-m", "fewshot", "train", "algorithm=reptile", "--cfg", "job")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "_target_: fewshot.Reptile" in shown.stdout


def test_the_command_lists_its_tools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fewshot.__main__ import main

    monkeypatch.setattr(sys, "argv", ["fewshot", "--help"])
    main()
    assert "fewshot <bench | evaluate" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["fewshot", "tarin"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert "tarin: no such tool, did you mean train? name a tool: fewshot <bench | evaluate" in said


@pytest.mark.parametrize("name", fewshot.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fewshot, name).__doc__


def test_type_checkers_may_trust_the_package(installed: Path) -> None:
    assert (installed / "fewshot/py.typed").exists() and (installed / "fewshot/__init__.pyi").exists()
