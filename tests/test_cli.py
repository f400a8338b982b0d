"""The tools as a person uses them: what a run leaves, what a second call does, and how mistakes are answered."""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot import cli

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    "backbone.network.filters=4", "train.steps=4", "train.meta_batch=2", "train.checkpoint_every=1",
    "train.validate_every=2", "test.episodes=6", "test.validation_episodes=4", "query=2",
)  # fmt: skip


class Outcome:
    """Exit code, stdout and stderr of a tool that was called in this process."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path, tmp_path: Path) -> Any:
    """call("train", "way=5", ...) runs tools/train.py in an empty working folder."""
    monkeypatch.setenv("FEWSHOT_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)

    def run(tool: str, *words: str) -> Outcome:
        cli.failures.clear()
        cli.sweep_records.clear()
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *words])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / f"tools/{tool}.py"), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its timings and the words that made it."""
    return {key: value for key, value in record.items() if key not in ("cost", "command")}


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize("algorithm", ["nearest", "maml", "fomaml", "reptile"])
def test_a_run_leaves_everything_that_the_design_says(call: Any, algorithm: str) -> None:
    quick = [word for word in QUICK if algorithm != "nearest" or not word.startswith("backbone")]
    done = call("train", f"algorithm={algorithm}", "run_dir=run", *quick)
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 1
    assert done.out.startswith(f"{algorithm} glyphs 5-way 1-shot: ")
    folder = Path("run")
    record = read(folder)
    assert record["protocol"]["manifest"]
    assert record["test"]["episodes"] == 6
    lines = (folder / "episodes.csv").read_text().splitlines()
    scores = [float(line.split(",")[1]) for line in lines[1:]]
    assert lines[0] == "episode,accuracy"
    assert np.mean(scores) == pytest.approx(record["test"]["accuracy"], abs=1e-6)
    assert (folder / "config.yaml").exists()
    assert (folder / "checkpoints/last.safetensors").exists()
    assert list(folder.glob("events.out.tfevents.*"))
    if algorithm != "nearest":
        assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()][-1] == 4
    assert not [path for path in Path().rglob("*") if path.name in ("outputs", "multirun", ".hydra")]


def test_a_finished_run_is_not_run_again_unless_told_to(call: Any) -> None:
    call("train", "run_dir=run", *QUICK)
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    again = call("train", "run_dir=run", *QUICK)
    assert again.code == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    first = read(Path("run"))
    assert call("train", "run_dir=run", "force=true", *QUICK).code == 0
    assert Path("run/record.json").stat().st_mtime_ns > before[Path("run/record.json")]
    assert comparable(read(Path("run"))) == comparable(first)


def test_a_sweep_ends_with_a_table_and_survives_a_broken_run(call: Any) -> None:
    done = call("train", "-m", "algorithm=maml,fomaml", "shot=1,30", "runs=sweep", *QUICK)
    assert done.code == 1
    assert "| maml (conv4), transductive" in done.out, done.err
    assert "| fomaml (conv4), transductive" in done.out
    assert done.err.count("error: ") == 2
    assert done.err.count("failed: ") == 2
    assert len(list(Path("sweep").rglob("record.json"))) == 2
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("record.json")}
    call("train", "-m", "algorithm=maml,fomaml", "shot=1", "runs=sweep", *QUICK)
    assert before == {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("record.json")}


def test_a_run_is_tested_again_with_another_protocol(call: Any) -> None:
    call("train", "run_dir=run", *QUICK)
    same = call("evaluate", "run=run")
    assert same.code == 0
    assert "nothing written" in same.out
    assert not Path("run/tests").exists()
    assert same.out.split(" (")[0] == call("train", "run_dir=run", *QUICK).out.split(" (")[0]
    other = call("evaluate", "run=run", "query=1", "transductive=false", "steps=5", "rotations=per_class")
    assert other.code == 0
    records = {path.parent.name: read(path.parent) for path in Path("run/tests").rglob("record.json")}
    assert len(records) == 1
    first = read(Path("run"))
    changed = records["test-1s1q-per_class-inductive-5steps-6e0"]
    assert changed["protocol"]["query"] == 1
    assert changed["protocol"]["regime"] == "inductive"
    assert changed["protocol"]["adaptation_steps"] == 5
    assert changed["query"] == 2  # what it was trained for
    assert changed["protocol"]["manifest"] != first["protocol"]["manifest"]
    assert changed["config"] == first["config"]
    table = call("table", "runs=run")
    assert table.code == 0
    assert table.out.count("| maml (conv4), ") >= 2


MISTAKES = {
    "more ways than classes": (["way=2000"], ["way=2000", "classes", "lower way"]),
    "more examples than the smallest class": (["shot=5", "query=16"], ["shot=5", "query=16", "20 examples", "U+"]),
    "missing data": (["dataset=omniglot"], ["images_background", "dataset.reader.download=true"]),
    "unknown key": (["shoot=5"], ["shoot", "did you mean shot"]),
    "unknown nested key": (["train.step=5"], ["train.step", "did you mean", "train.steps"]),
    "unknown option": (["algorithm=mamal"], ["algorithm=mamal", "did you mean maml"]),
    "unknown value": (["engine=fast"], ["engine=fast", "vmap"]),
    "wrong type": (["way=five"], ["way=five", "Integer"]),
    "several values without -m": (["shot=1,5"], ["shot=1,5", "add -m"]),
    "no number": (["algorithm.learner.inner_lr=fast"], ["algorithm.learner.inner_lr=fast", "a number"]),
    "no queries to learn from": (["train.query=0"], ["train.query=0"]),
    "nothing to train": (["backbone=pixels"], ["no parameters"]),
    "a backbone that the algorithm cannot use": (["algorithm=nearest", "backbone=conv4"], ["backbone=pixels or"]),
    "a file in place of a folder": (["run_dir=/dev/null"], ["/dev/null"]),
    "no override": (["algorithm"], ["command line"]),
    "unknown choice in the backbone": (["backbone.network.readout=max"], ["readout=max", "flatten, mean"]),
    "unknown split": (["test.split=tset"], ["test.split=tset", "train"]),
    "no such device": (["device=cuda:77"], ["device=cuda:77"]),
    "resume of nothing": (["resume=nowhere"], ["nowhere", "not a run folder"]),
    "resume with other settings": (["resume=nowhere", "way=3"], ["leave out way=3"]),
    "episodes too few": (["test.episodes=0"], ["test.episodes=0"]),
    "no steps": (["train.meta_batch=0"], ["train.meta_batch=0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_leaves_nothing(call: Any, mistake: str) -> None:
    words, said = MISTAKES[mistake]
    done = call("train", *words)
    assert done.code != 0
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert all(part in done.err for part in said), done.err
    assert not list(Path().iterdir())


def test_a_folder_that_holds_something_else_is_left_alone(call: Any) -> None:
    call("train", "run_dir=run", *QUICK)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    done = call("train", "run_dir=run", "seed=1", *QUICK)
    assert done.code == 1
    assert done.err == "error: run: holds another run (other seed); choose another run_dir\n"
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    assert "not empty and not a run" in call("train", "run_dir=mine", *QUICK).err
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


def test_a_damaged_or_foreign_checkpoint_is_one_line(call: Any) -> None:
    call("train", "run_dir=run", *QUICK)
    call("train", "run_dir=other", "algorithm=reptile", *QUICK)
    last, best = Path("run/checkpoints/last.safetensors"), Path("run/checkpoints/best.safetensors")
    best.write_bytes(Path("other/checkpoints/last.safetensors").read_bytes())
    done = call("evaluate", "run=run")
    assert done.code == 1
    assert "another algorithm or backbone" in done.err
    last.write_bytes(last.read_bytes()[:100])
    done = call("evaluate", "run=run")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "damaged" in done.err
    assert not Path("run/tests").exists()


def test_a_loss_that_is_not_finite_stops_the_run(call: Any) -> None:
    done = call("train", "run_dir=run", "train.outer_lr=1e30", *QUICK)
    assert done.code == 1
    assert done.err.startswith("error: step 2: the loss or its gradient is not finite")
    assert not Path("run/record.json").exists()


def test_a_truncated_archive_is_one_line(call: Any) -> None:
    Path("omniglot").mkdir()
    for name in ("background", "evaluation"):
        Path(f"omniglot/images_{name}.zip").write_bytes(b"PK\x03\x04 and no more")
    done = call("train", "dataset=omniglot", "data_dir=.", "run_dir=run")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "images_background.zip" in done.err
    assert sorted(path.name for path in Path().iterdir()) == ["omniglot"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_a_run_killed_at_random_moments_ends_with_the_record_of_a_whole_one(
    algorithm: str, data_dir: Path, tmp_path: Path
) -> None:
    words = [
        f"algorithm={algorithm}", "train.steps=40", "train.meta_batch=2", "train.checkpoint_every=3",
        "train.validate_every=8", "train.select=best", "test.episodes=50", "test.validation_episodes=10",
        "backbone.network.filters=8", "query=3",
    ]  # fmt: skip
    environment = os.environ | {"FEWSHOT_DATA": str(data_dir), "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(ROOT / "tools/train.py"), *words], env=environment, cwd=tmp_path)

    assert start("run_dir=whole", *words).wait() == 0
    dice, deaths = random.Random(0), 0
    process = start("run_dir=died", *words)
    while deaths < 4:
        time.sleep(dice.uniform(0.05, 1.5) if (tmp_path / "died/checkpoints/last.safetensors").exists() else 0.5)
        if process.poll() is not None:
            break
        if (tmp_path / "died/config.yaml").exists():
            process.send_signal(signal.SIGKILL)
            process.wait()
            deaths += 1
            process = start("resume=died")
    assert process.wait() == 0
    assert deaths >= 1
    whole, died = read(tmp_path / "whole"), read(tmp_path / "died")
    assert comparable(whole) == comparable(died)
    assert (tmp_path / "whole/episodes.csv").read_bytes() == (tmp_path / "died/episodes.csv").read_bytes()
