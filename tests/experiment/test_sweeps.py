"""Sweeps: runs in this process, in others, chosen by a search; killed, broken, and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from operator import truediv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.experiment import sweeps

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "backbone.network.filters=4", "train.steps=4", "train.meta_batch=2", "train.checkpoint_every=1", "logger=none",
    "train.validate_every=2", "validation.episodes=4", "validation.query=2", "protocol=common",
    "protocol.common.episodes=6", "protocol.common.query=2", "protocol.common.setting=transductive",
)  # fmt: skip
BROKEN = "shot=1,30"  # there are 20 examples of a class


def nothing_is_installed(name: str) -> str:
    raise sweeps.PackageNotFoundError(name)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, data_dir: Path, tmp_path: Path) -> Any:
    """start("way=5", ...) begins tools/train.py -m in a process of its own, in an empty working folder."""
    monkeypatch.setenv("FEWSHOT_DATA", str(data_dir))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray writes a token into the home folder
    monkeypatch.chdir(tmp_path)

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "tools/train.py"), "-m", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


def records(runs: str) -> dict[Path, int]:
    """Every record and when it was written."""
    return {path: path.stat().st_mtime_ns for path in Path(runs).rglob("record.json")}


def left_of(runs: str) -> set[str]:
    return {path.name for path in Path(runs).iterdir()}


@pytest.mark.parametrize(
    ("direction", "metric", "objective"),
    [
        ("maximize", "accuracy", 0.25),
        ("maximize", "mse", -0.25),
        ("minimize", "mse", 0.25),
        ("minimize", "accuracy", -0.25),
    ],
)
def test_a_search_finds_the_best_validation_whatever_its_metric_and_direction(
    direction: str, metric: str, objective: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OmegaConf.create({"sweeper": {"direction": direction}})
    record = {"test": {metric: 0.5}, "validation": {metric: 0.25}}
    monkeypatch.setattr("fewshot.report.records.read_record", lambda _: record)
    monkeypatch.setattr(sweeps.HydraConfig, "get", lambda: config)
    assert sweeps.objective(Path("record.json")) == objective


def break_own(*_: Any) -> None:
    raise ZeroDivisionError("of a person's\nown algorithm")


@pytest.mark.parametrize(
    ("words", "runs"), [(("algorithm=nearest", *QUICK[5:]), 2), ((*QUICK, "train.validate_every=0"), 0)]
)
def test_a_run_of_a_search_without_validation_has_failed(
    call: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], runs: int
) -> None:
    """What is never validated is known after a run, and that nothing is to be validated before it."""
    monkeypatch.setattr(sweeps, "is_search", lambda: True)
    done = call("train", "-m", "way=2", *words, "shot=1,2")
    assert done.code == 1
    assert done.err.count("failed: shot=") == done.err.count("error: a search goes by the score on the validation") == 2
    assert len(list(Path().glob("runs/*/*/config.yaml"))) == runs


def test_a_search_is_a_sweep_by_a_sweeper_that_is_not_hydras_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, searches in (("hydra_plugins.a_search.Sweeper", True), ("hydra._internal.core_plugins.Basic", False)):
        cfg = SimpleNamespace(mode=RunMode.MULTIRUN, sweeper=SimpleNamespace(_target_=target))
        monkeypatch.setattr(sweeps.HydraConfig, "get", lambda cfg=cfg: cfg)
        assert sweeps.is_search() == searches


@pytest.mark.parametrize(
    ("broken", "tracebacks", "said"),
    [
        (break_own, 0, r"test_sweeps.py:\d+: ZeroDivisionError: of a person's own algorithm; HYDRA_FULL_ERROR=1 .*"),
        (partial(truediv, 1, 0), 1, "ZeroDivisionError: division by zero"),
    ],
    ids=["of a person's code", "of this code"],
)
def test_an_error_of_code_ends_one_run_and_not_the_sweep(
    call: Any, monkeypatch: pytest.MonkeyPatch, broken: Any, tracebacks: int, said: str
) -> None:
    from fewshot.algorithms.reptile import Reptile

    monkeypatch.setattr(Reptile, "init", broken)
    done = call("train", "-m", "algorithm=reptile,maml", "runs=sweep", *QUICK)
    assert done.code == 1
    assert "| maml" in done.out
    assert done.err.count("Traceback") == tracebacks
    assert re.fullmatch(f"failed: algorithm=reptile: {said}", done.err.splitlines()[-1])
    assert not {name for name in left_of("sweep") if name.startswith(".sweep")}


def test_a_grid_over_a_methods_settings_ends_with_their_validation_scores(call: Any) -> None:
    done = call("train", "-m", "algorithm=maml", "algorithm.learner.inner_lr=0.1,0.4", "runs=sweep", *QUICK)
    assert done.code == 0
    tests, _, validation = done.out.partition("Validation scores, by which to choose a setting (accuracy in per cent):")
    scores = [json.loads(path.read_text())["validation"]["accuracy"] for path in sorted(records("sweep"))]
    for text in (tests, validation):
        assert "| maml, inner_lr=0.1" in text and "| maml, inner_lr=0.4" in text
    assert all(f"{100 * score:.2f}" in validation for score in scores)


def test_a_sweep_that_is_running_is_not_begun_again(tmp_path: Path) -> None:
    with sweeps.sweep_status_dir(tmp_path, ["shot=1,5"]) as folder:
        with (
            pytest.raises(FewshotError, match="the same sweep is running already; wait for it, or stop it"),
            sweeps.sweep_status_dir(tmp_path, ["shot=1,5"]),
        ):
            pass
        with sweeps.sweep_status_dir(tmp_path, ["shot=1"]) as other:
            assert other != folder
    assert not list(tmp_path.iterdir())


def test_force_does_not_hand_out_an_old_run_where_its_first_job_failed(call: Any) -> None:
    words = ("-m", "runs=sweep", *QUICK, "force=true")
    assert call("train", *words, "protocol.common.query=3").code == 0
    done = call("train", *words, "protocol.common.query=500,3")
    assert (done.code, done.err.count("failed: ")) == (1, 1)
    assert done.out.count("maml glyphs 5-way 1-shot: starts, 0 of 4") == 1 and "finished before" not in done.out


def test_force_begins_a_run_anew_once_in_a_sweep_that_tests_it_several_times(call: Any) -> None:
    words = ("-m", "runs=sweep", *QUICK, "protocol.common.query=2,3", "force=true")
    for _ in range(2):
        done = call("train", *words)
        assert (done.code, len(records("sweep"))) == (0, 2), done.err
        assert done.out.count("maml glyphs 5-way 1-shot: starts, 0 of 4") == 1
        assert "| maml" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hydra/launcher=joblib_here",), "hydra/launcher=joblib_here: is for sweeps; add -m"),
        (("-m", "hydra/launcher=joblib_here"), "pip install -e '.[joblib]'"),
        (("-m", "hydra/sweeper=optuna_leo"), "pip install -e '.[optuna]'"),
        (("-m", "hydra/launcher=nonsense"), "hydra/launcher=nonsense: no such option"),
        (("-m", "hydra.launcher.n_jobs=2"), "hydra.launcher.n_jobs: no such key"),
        (("-m", "train.outer_lr=interval(0.1, 1)"), "the sweep ended early"),
        (("-m", "train.outer_lr=interval(a, b)"), "train.outer_lr: Hydra cannot read the value interval(a, b)"),
    ],
)
def test_mistakes_about_launchers_and_sweepers_are_one_line(
    call: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(sweeps, "version", nothing_is_installed)
    done = call("train", *words)
    assert (done.code, len(done.err.splitlines())) == (1, 1), done.err
    assert said in done.err
    assert not list(Path().rglob("record.json"))


def test_launchers_are_not_for_processes_of_torchrun(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "version", nothing_is_installed)
    monkeypatch.setenv("RANK", "3")  # which other programs set too
    assert "not installed" in call("train", "-m", "hydra/launcher=submitit_here").err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = call("train", "-m", "hydra/launcher=submitit_here")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "not under torchrun" in done.err


def test_a_launcher_that_a_file_chose_is_not_for_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    own, foreign = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}, {"_target_": "plugins.Mine"}
    choices = {"choices": {"hydra/launcher": "joblib_here", "hydra/sweeper": "basic"}}
    cfg = OmegaConf.create({"hydra": {"launcher": foreign, "sweeper": own, "runtime": choices}})
    sweeps.check_launcher(cfg)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FewshotError, match="hydra/launcher=joblib_here: not under torchrun"):
        sweeps.check_launcher(cfg)


LAUNCHERS = {  # and their plugins
    "joblib_here": "hydra_joblib_launcher",
    "submitit_here": "hydra_submitit_launcher",
    "ray_here": "hydra_ray_launcher",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_runs_of_other_processes_end_in_the_same_table_and_failures(start: Any, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.{LAUNCHERS[launcher]}")
    words = ("algorithm=maml", BROKEN, "runs=sweep", *QUICK)
    process = start(f"hydra/launcher={launcher}", *words)
    out, err = process.communicate()
    assert process.returncode == 1
    assert "| maml" in out, err
    assert "failed: shot=30: glyphs, split train: shot=30 plus query=30 is more than" in err
    assert "Traceback" not in err
    (record,) = records("sweep")
    assert json.loads(record.read_text())["command"].endswith(" ".join(QUICK))
    assert not {name for name in left_of("sweep") if name.startswith(".sweep")}
    # It is the run that this process would have made.
    before = records("sweep")
    again, _ = start(*words).communicate()
    assert records("sweep") == before
    assert again.count("| maml") == out.count("| maml")


def children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in listed]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a sweep in /proc")
@pytest.mark.parametrize("victim", ["the sweep", "one of its processes"])
def test_a_sweep_that_was_killed_runs_what_is_missing_and_nothing_twice(start: Any, victim: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ("hydra/launcher=joblib_here", "hydra.launcher.n_jobs=2", "algorithm=maml,fomaml", "seed=0,1,2,3")
    quick = [word for word in QUICK if not word.startswith("train.steps")] + ["train.steps=40", "runs=sweep"]
    process = start(*words, *quick)
    while len(records("sweep")) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    workers = [c for c in children(process.pid) if b"popen_loky" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(process.pid if victim == "the sweep" else workers[0], signal.SIGKILL)
    _, err = process.communicate()
    if victim == "one of its processes":
        assert process.returncode == 1
        assert "error: the sweep ended early: TerminatedWorkerError" in err
        assert "Traceback" not in err
    # None of its processes outlives it, to hold a run that the next one wants.
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        time.sleep(0.02)
    before = records("sweep")
    assert 3 <= len(before) < 8
    process = start(*words, *quick)
    out, err = process.communicate()
    assert process.returncode == 0, err
    after = records("sweep")
    assert len(after) == 8
    assert before.items() <= after.items()
    assert out.count("mean of 4 training seeds") == 1
    assert not {name for name in left_of("sweep") if name.startswith(".sweep")}


@pytest.mark.slow
def test_a_search_goes_by_validation_accuracy_and_comes_by_the_same_runs_again(start: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ("hydra/sweeper=optuna_search", "hydra.sweeper.n_trials=3", "algorithm=maml", "runs=sweep", *QUICK)
    searched = "train.outer_lr=tag(log, interval(1e-4, 1e-1))"
    process = start(*words, searched)
    out, err = process.communicate()
    assert process.returncode == 0, err
    found = [json.loads(path.read_text())["validation"]["accuracy"] for path in records("sweep")]
    results = Path("sweep/optimization_results.yaml").read_text()
    assert len(found) == 3
    assert f"best_value: {max(found)}" in results
    assert out.count("| maml") >= 3
    before = records("sweep")
    process = start(*words, searched)
    process.communicate()
    assert records("sweep") == before
    assert Path("sweep/optimization_results.yaml").read_text() == results


def test_a_file_is_that_of_the_first_run_of_a_sweep_that_wrote_it(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"out": "far/one.csv", "page": None})
    for _ in range(2):  # a sweep that is started again
        with sweeps.sweep_status_dir(tmp_path, ["predict.py"]):
            with pytest.raises(ValueError, match="no such query"), sweeps.own_outputs(cfg):
                raise ValueError("no such query")
            with sweeps.own_outputs(cfg):
                pass
            with (
                pytest.raises(FewshotError, match=r"set 'out=far/one_\$\{hydra:job.num\}.csv'"),
                sweeps.own_outputs(cfg),
            ):
                pass


@pytest.mark.parametrize(("key", "value"), [("sheet", "a.png"), ("pictures", "drawn"), ("pictures", ".")])
def test_pictures_are_those_of_the_first_run_of_a_sweep_that_drew_them(tmp_path: Path, key: str, value: str) -> None:
    cfgs = [OmegaConf.create({key: value, "format": form}) for form in ("png", "pdf", "png")]
    with sweeps.sweep_status_dir(tmp_path, ["report.py"]):
        with sweeps.own_outputs(cfgs[0]):
            pass
        if key == "pictures":
            with sweeps.own_outputs(cfgs[1]):  # whose files have other endings
                pass
        with pytest.raises(FewshotError, match="was written by an earlier run"), sweeps.own_outputs(cfgs[2]):
            pass


@pytest.mark.slow
def test_the_random_search_for_leo_varies_its_six_values_within_their_ranges(start: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ("hydra/sweeper=optuna_leo", "hydra.sweeper.n_trials=2", "runs=sweep", "backbone=identity", *QUICK[-5:])
    words += ("features=conv4", "features.network.filters=4", "features.settings.epochs=1", "train.steps=4")
    words += ("train.validate_every=2", "validation.episodes=4")
    process = start(*words)
    _, err = process.communicate()
    assert process.returncode == 0, err
    configs = [(path.parents[2] / "config.yaml").read_text() for path in records("sweep")]
    assert len(configs) == 2
    search = (ROOT / "conf/hydra/sweeper/optuna_leo.yaml").read_text()
    ranges = re.findall(r"(\w+): (?:tag\(log, )?interval\((\S+), (\S+?)\)", search)
    assert len(ranges) == 6
    for value, low, high in ranges:
        (one,), (other,) = (re.findall(rf"^ +{value}: (\S+)$", config, re.MULTILINE) for config in configs)
        assert one != other, value
        assert all(float(low) <= float(each) <= float(high) for each in (one, other)), value
