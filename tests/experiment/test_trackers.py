"""Trackers get the configuration, curves, test scores, records and pictures of a run, and write below its folder."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewshot.core.errors import FewshotError
from fewshot.experiment import trackers
from fewshot.experiment.trackers import check_logger, open_tracker

QUICK = (
    "dataset=sinusoid", "run_dir=run", "train.steps=3", "train.meta_batch=2", "train.log_every=1", "plot=true",
    "train.validate_every=0", "train.checkpoint_every=1", "protocol=common", "protocol.common.steps=1",
    "protocol.common.episodes=4",
)  # fmt: skip
UNDRAWN = [word for word in QUICK if word != "plot=true"]
TEST = "common-episodes=4-steps=1-inductive"
CURVES = {"mse", "loss", "outer_lr"}


class FakeRun:
    """Keeps what W&B's run would send."""

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.saved, self.exit_code = options, [], [], None
        self.log = self.logged.append

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code

    def save(self, path: str, base_path: str, policy: str) -> None:
        assert Path(path).is_file() and policy == "now"
        self.saved.append(str(Path(path).relative_to(base_path)))


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """A module in the place of wandb; the runs that it opened."""
    runs: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    module: Any = types.ModuleType("wandb")
    module.init, module.setup, module.Settings, module.Image = init, dict, dict, lambda path: Path(path).stat().st_size
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers, "find_spec", lambda name: module)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return runs


def test_tensorboard_has_curves_scores_configuration_and_picture(call: Any) -> None:
    done = call("train", *QUICK)
    assert (done.code, done.err) == (0, "")
    events = EventAccumulator("run").Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= CURVES and any(name.endswith("-inductive/mse") for name in tags["scalars"])
    assert [event.step for event in events.Scalars("mse")] == [1, 2, 3]
    assert tags["images"] == ["fits"]
    assert "configuration/text_summary" in tags["tensors"]
    assert len(list(Path("run").glob("events.*"))) == 2
    # A finished run is drawn again, and its scores are not written twice.
    assert call("train", *QUICK).code == 0
    (name,) = (name for name in tags["scalars"] if name.endswith("/mse"))
    assert len(EventAccumulator("run").Reload().Scalars(name)) == 1


def test_tensorboard_has_the_configuration_of_an_untrained_method_once(tmp_path: Path) -> None:
    for score in (0.5, 0.6):
        with open_tracker("tensorboard", tmp_path, "nearest", {"way": 5}) as tracker:
            tracker.track({"accuracy": score}, 0)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Scalars("accuracy")) == 2 and len(events.Tensors("configuration/text_summary")) == 1


def test_wandb_gets_one_run_offline(call: Any, fake_wandb: list[FakeRun]) -> None:
    done = call("train", *QUICK, "logger=wandb")
    assert (done.code, done.err) == (0, "")
    training, results = fake_wandb
    assert training.exit_code == results.exit_code == 0
    assert training.options["id"] == results.options["id"] == json.loads(Path("run/trackers.json").read_text())["wandb"]
    assert (training.options["mode"], training.options["dir"]) == ("offline", "run")
    assert training.options["config"]["train"]["steps"] == 3
    assert [values["step"] for values in training.logged] == [1, 2, 3]
    assert training.logged[0].keys() >= CURVES
    (scores, picture) = results.logged
    assert scores[f"{TEST}/mse"] > 0
    assert picture["fits"] > 10_000
    assert results.saved == [f"{TEST}/record.json"]


def test_none_writes_nothing_and_a_run_that_goes_on_keeps_its_place_and_a_forced_one_gets_another(
    call: Any, fake_wandb: list[FakeRun]
) -> None:
    assert call("train", *UNDRAWN, "logger=none").code == 0
    assert Path("run/metrics.jsonl").exists() and not list(Path("run").glob("events.*"))
    Path("run/tests").rename("kept")
    numbers = []
    for words in (("resume=run",), (*UNDRAWN, "protocol.common.query=3"), (*UNDRAWN, "force=true")):
        assert call("train", *words, "logger=wandb").code == 0
        (number,) = {run.options["id"] for run in fake_wandb}
        numbers.append(number)
        fake_wandb.clear()
    assert numbers[0] == numbers[1] != numbers[2]


def test_mlflow_gets_one_run_in_files(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    given: dict[str, str] = {}

    class FakeClient:
        def __init__(self, uri: str) -> None:
            calls.append(("uri", uri))

        def get_experiment_by_name(self, name: str) -> Any:
            return types.SimpleNamespace(experiment_id="7") if name == "fewshot" else None

        def create_run(self, experiment: str, run_name: str) -> Any:
            calls.append(("create_run", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            calls.extend((run, *metric) for metric in metrics)
            given.update(params)

        def __getattr__(self, name: str) -> Any:
            return lambda *words: calls.append((name, *words))

    for name, members in (
        ("mlflow", {}),
        ("mlflow.entities", {"Metric": lambda name, value, now, step: (name, step), "Param": lambda *pair: pair}),
        ("mlflow.tracking", {"MlflowClient": FakeClient}),
    ):
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trackers, "find_spec", lambda name: module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = call("train", *QUICK, "logger=mlflow")
    assert (done.code, done.err) == (0, "")
    assert [each for each in calls if each[0] == "uri"] == [("uri", (Path("run").absolute() / "mlruns").as_uri())] * 2
    assert [each for each in calls if each[0] == "create_run"] == [("create_run", "7", "maml sinusoid 10-shot")]
    assert (given["train.steps"], given["algorithm.learner._target_"]) == ("3", "fewshot.MAML")
    assert [each[2] for each in calls if each[:2] == ("r1", "mse")] == [1, 2, 3]
    assert any(each[0] == "r1" and each[1].endswith("-inductive/mse") and each[2] == 3 for each in calls)
    artifacts = [each[2:] for each in calls if each[0] == "log_artifact"]
    assert [Path(path).name for path, _ in artifacts] == ["record.json", "fits.png"]
    assert [each for each in calls if each[0] == "set_terminated"] == [("set_terminated", "r1", "FINISHED")] * 2
    with pytest.raises(KeyboardInterrupt), open_tracker("mlflow", Path("run"), "maml", {}):
        raise KeyboardInterrupt
    assert calls[-1] == ("set_terminated", "r1", "FAILED")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line_before_any_work(call: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    done = call("train", *QUICK, f"logger={name}")
    remedy = f"`uv run --extra {name} python ...` or `pip install {name}` installs it; or choose logger=tensorboard"
    assert done.err == f"error: logger={name}: not installed; {remedy}\n"
    assert not Path("run").exists()


def test_a_tracker_that_does_not_start_is_one_line(fake_wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def init(**options: Any) -> None:
        raise RuntimeError("no answer\nfrom the server")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    message = "^logger=wandb: no answer from the server; mend it, or choose"
    with pytest.raises(FewshotError, match=message), open_tracker("wandb", tmp_path, "maml", {}, 0):
        pass


def test_a_tracker_that_does_not_start_after_a_training_fails_no_run(
    fake_wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    with open_tracker("wandb", tmp_path, "maml", {}) as tracker:
        tracker.track({"accuracy": 0.5}, 3)
    assert capsys.readouterr().err.startswith("warning: logger=wandb: division by zero; nothing more is sent; the run")


def test_a_tracker_that_fails_on_the_way_ends_no_run(
    call: Any, fake_wandb: list[FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: Any, **__: Any) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(FakeRun, "save", silent)
    done = call("train", *UNDRAWN, "logger=wandb")
    assert done.code == 0 and Path("run/tests", TEST, "record.json").exists()
    assert done.err.startswith("warning: logger=wandb: no answer; ") and done.err.count("\n") == 1
    assert [run.exit_code for run in fake_wandb] == [0, 0]


def test_a_run_that_an_error_ended_has_failed(fake_wandb: list[FakeRun], tmp_path: Path) -> None:
    with pytest.raises(FewshotError, match="not finite"), open_tracker("wandb", tmp_path, "maml", {}):
        raise FewshotError("the loss is not finite")
    assert fake_wandb[0].exit_code == 1


def test_an_unknown_tracker_is_refused():
    with pytest.raises(FewshotError, match="logger=comet: choose one of tensorboard, wandb, mlflow, none"):
        check_logger("comet")


def test_wandb_itself_writes_below_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    fill(tmp_path, "wandb")
    fill(tmp_path, "wandb")
    stored = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(stored) == 2 and all(path.stat().st_size > 500 for path in stored)
    assert len({path.name for path in stored}) == 1
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/*.png"))


def test_mlflow_itself_writes_below_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fill(tmp_path, "mlflow")
    fill(tmp_path, "mlflow")
    client = importlib.import_module("mlflow.tracking").MlflowClient((tmp_path / "mlruns").as_uri())
    (experiment,) = (each for each in client.search_experiments() if each.name == "fewshot")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"way": "1", "train.steps": "3"}
    assert run.info.run_name == "maml sinusoid" and run.info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(run.info.run_id, "test/mse")] == [0.5, 0.5]
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "fits.png", "common"}


def fill(folder: Path, name: str) -> None:
    """One process's part of a run, without training."""
    from PIL import Image

    (folder / "tests/common").mkdir(parents=True, exist_ok=True)
    (folder / "tests/common/record.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(folder / "fits.png")
    with open_tracker(name, folder, "maml sinusoid", {"way": 1, "train": {"steps": 3}}, 0) as tracker:
        tracker.track({"test/mse": 0.5}, 1)
        tracker.track_file(folder / "tests/common/record.json")
        tracker.track_file(folder / "fits.png")
