"""The examples run, on little data and for a few steps."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that loads an example, by its name, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def seeded(main: Any, **options: Any) -> float:
    torch.manual_seed(0)
    return main(**options)


def test_own_tensors_are_learned_and_labelled(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (seeded(load("own_tensors"), steps=steps, episodes=40) for steps in (0, 30))
    assert before + 0.1 < after <= 1
    lines = capsys.readouterr().out.splitlines()[-15:]
    assert sum(" is taken for class 2." in line for line in lines) == 15
    assert not list(Path().iterdir())


def test_a_folder_of_class_folders_is_learned_and_its_training_goes_on(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = np.random.RandomState(0)
    for number in range(12):
        folder = tmp_path / f"pictures/animal {number:02}"
        folder.mkdir(parents=True)
        pattern = dice.randint(0, 200, (9, 9, 3))
        for index in range(5):
            pixels = (pattern + dice.randint(0, 50, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    Image.new("RGBA", (9, 9), (200, 0, 0, 60)).save(folder / "through.png")  # which lies on white for the bank
    main = load("own_folder")
    labels = main("pictures", steps=2, episodes=2)
    assert len(labels) == 6 and all(label.startswith("animal ") for label in labels)
    assert main("pictures", steps=2, episodes=2) == labels
    assert "accuracy on new classes: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["one", "two"]])
def test_the_example_of_a_folder_asks_for_one(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["own_folder.py", *arguments])
    with pytest.raises(SystemExit, match="give the folder of your class folders"):
        runpy.run_path(str(EXAMPLES / "own_folder.py"), run_name="__main__")


def test_a_loop_of_ones_own_trains(load: Any, data_dir: Path) -> None:
    data = str(data_dir / "banks")
    before, after = (seeded(load("own_loop"), steps=steps, episodes=40, data=data) for steps in (0, 30))
    assert before + 0.05 < after <= 1
