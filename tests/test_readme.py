"""The README's sections on one's own algorithm and dataset, followed to the letter, on little data."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
QUICK = (
    "backbone.network.filters=4", "train.steps=2", "train.meta_batch=2", "train.validate_every=1", "query=2",
    "test.episodes=3", "test.validation_episodes=2", "runs=runs", "data_dir=data",
)  # fmt: skip


def section(title: str) -> str:
    return re.split(r"^## ", README.split(f"## {title}")[1], flags=re.MULTILINE)[0]


def write_files(text: str) -> list[Path]:
    """Write each block of a section below the name that stands before it."""
    found = re.findall(r"`(mine/[^`]+)`[^`]*```\w+\n(.*?)```", text, re.DOTALL)
    for name, content in found:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    return [Path(name) for name, _ in found]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(tool, words) of the section's commands, which add the folder of one's own to Python's path."""
    lines = re.findall(r"^PYTHONPATH=mine python tools/(.*)$", text, re.MULTILINE)
    return [(line.split(".py ")[0], shlex.split(line.split(".py ")[1])) for line in lines]


@pytest.fixture
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(tmp_path / "mine")
    yield
    for name in ("prototypes", "arrays"):
        sys.modules.pop(name, None)


def quick(words: list[str], *more: str) -> list[str]:
    return [word for word in words if not word.startswith("train.steps")] + [*QUICK, *more]


def test_an_algorithm_of_ones_own_learns_and_is_tested(call: Any, own_modules: None, data_dir: Path) -> None:
    text = section("Add an algorithm")
    assert [path.name for path in write_files(text)] == ["prototypes.py", "prototypes.yaml"]
    ((tool, words),) = commands(text)
    learning = ("train.steps=40", "train.meta_batch=4", "train.outer_lr=0.01", "backbone.network.filters=16")
    own = quick(words, f"data_dir={data_dir}", "run_dir=run", "test.episodes=20", "train.validate_every=0")
    done = call(tool, *own, *learning, "train.select=last")
    assert (done.code, done.err) == (0, "")
    record = json.loads(Path("run/record.json").read_text())
    assert (record["algorithm"], record["protocol"]["adaptation_steps"]) == ("prototypes", 0)
    assert record["test"]["accuracy"] > 0.35  # 0.25 without training
    again = call("evaluate", "run=run", "query=1")
    assert (again.code, again.err) == (0, "")


def test_a_dataset_of_ones_own_is_prepared_and_trained_on(call: Any, own_modules: None) -> None:
    text = section("Add a dataset")
    assert [path.name for path in write_files(text)] == ["arrays.py", "arrays.yaml"]
    dice = np.random.RandomState(0)
    for split in ("train", "val", "test"):
        for number in range(6):
            file = Path(f"data/arrays/{split}/{number}.npy")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, dice.randint(0, 256, (5, 1, 28, 28)).astype(np.uint8))
    (prepare, train) = commands(text)
    done = call(*prepare[:1], *prepare[1], "data_dir=data")
    assert (done.code, done.err) == (0, "")
    assert "arrays, from arrays.read" in done.out
    done = call(*train[:1], *quick(train[1], "run_dir=run"))
    assert (done.code, done.err) == (0, "")
    assert json.loads(Path("run/record.json").read_text())["dataset"] == "arrays"
    unnamed = call(*train[:1], *quick(train[1][:-1], "algorithm=leo"))
    assert (unnamed.code, unnamed.err.count("\n")) == (1, 1)
    assert "wants conf/features/arrays.yaml" in unnamed.err and "choose features=conv4" in unnamed.err


def test_the_name_and_the_class_are_all_that_an_algorithm_has_to_say(
    call: Any, own_modules: None, data_dir: Path
) -> None:
    write_files(section("Add an algorithm"))
    Path("mine/conf/algorithm/prototypes.yaml").write_text(
        "name: prototypes\nlearner:\n  _target_: prototypes.Prototypes\n  scale: 1.0\n"
    )
    shown = call("train", "--config-dir", "mine/conf", "algorithm=prototypes", "--cfg", "job", "--package", "train")
    assert (shown.code, shown.err) == (0, "")
    assert "outer_optimizer: adam" in shown.out
    words = quick(["--config-dir", "mine/conf", "algorithm=prototypes"], f"data_dir={data_dir}", "run_dir=run")
    done = call("train", *words)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("missing", ["init", "adapt", "predict"])
def test_a_method_that_an_algorithm_lacks_is_named(call: Any, own_modules: None, data_dir: Path, missing: str) -> None:
    text = section("Add an algorithm").replace(f"def {missing}(", f"def other_{missing}(")
    write_files(text)
    ((tool, words),) = commands(text)
    done = call(tool, *quick(words, f"data_dir={data_dir}", "run_dir=run"))
    assert done.err == f"error: algorithm.learner: Prototypes has no method {missing}; see `Learner`\n"
    assert not Path("run").exists()
