"""Trackers, `logger` of a configuration: they show the configuration, curves, test scores and pictures of runs.

`tensorboard` writes event files into the run folder. `wandb` and `mlflow` write there too, and reach a server only
where their own environment variables (WANDB_MODE=online, MLFLOW_TRACKING_URI) say so.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from omegaconf import OmegaConf

from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.files import write_atomically
from fewshot.experiment.config import flatten
from fewshot.report.records import read_record

LOGGERS = ("tensorboard", "wandb", "mlflow", "none")
EXTRAS = ("wandb", "mlflow")  # of pyproject.toml
PROJECT = "fewshot"  # of W&B, and the experiment of MLflow
HAS_ALL = "nothing more is sent; the run folder has all curves and scores"
IDS = "trackers.json"  # in a run folder: the identifiers of the run there


class Tracker(Protocol):
    """One run in a tracker."""

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of these curves."""
        ...

    def track_file(self, path: Path) -> None:
        """Add a file: a PNG is shown, others are kept."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write all that is not written yet; `failed`: the process was interrupted, or an error ended it."""
        ...


def check_logger(name: str) -> None:
    """Raises FewshotError if there is no such tracker, or its package is not installed."""
    check_choice("logger", name, LOGGERS)
    if name in EXTRAS and find_spec(name) is None:
        raise FewshotError(
            f"logger={name}: not installed; `uv run --extra {name} python ...` or `pip install {name}` installs it; or "
            "choose logger=tensorboard"
        )


@contextmanager
def open_tracker(
    name: str, folder: Path, title: str, config: Mapping[str, Any], done: int | None = None
) -> Iterator[Tracker]:
    """The run of a folder in a tracker: a new one, or the one that an earlier process opened.

    Args:
        name: one of LOGGERS.
        folder: the run folder.
        title: of the run.
        config: its configuration as plain values.
        done: outer steps of an earlier process; points after them are dropped where the tracker can. None: the training
            is over. All points are kept, and a tracker that cannot be started is only a warning.

    Raises:
        FewshotError: as `check_logger`, or the tracker cannot be started.
    """
    check_logger(name)
    kinds = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow, "none": Nothing}
    try:
        tracker: Tracker = kinds[name](folder, title, config, done)
    except Exception as error:  # of any kind, such as a server that does not answer
        if done is not None:
            raise FewshotError(f"logger={name}: {one_line(error)}; mend it, or choose logger=tensorboard") from error
        print(f"warning: logger={name}: {one_line(error)}; {HAS_ALL}", file=sys.stderr)
        tracker = Nothing()
    tracker = Tolerant(tracker, name)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


def track_test(tracker: Tracker, folder: Path) -> None:
    """Track the scores in the record of a test, and the file itself.

    Args:
        folder: of the test, below `tests` of the run folder.
    """
    record = read_record(folder / "record.json")
    values = {}
    for metric, value in record["test"].items():
        for steps, score in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(score, int | float):
                values[f"{folder.name}/{metric}{f'_{steps}' if steps else ''}"] = float(score)
    tracker.track(values, record["train"].get("steps") or 0)
    tracker.track_file(folder / "record.json")


class Tolerant:
    """Another tracker, which gets nothing after its first error: no training is lost by a server that is silent."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self.tracker, self.name, self.fails = tracker, name, False

    def track(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self.tracker.track(values, step))

    def track_file(self, path: Path) -> None:
        self._try(lambda: self.tracker.track_file(path))

    def close(self, *, failed: bool) -> None:
        if self.fails:
            with suppress(Exception):  # so that what was sent is kept, and a sweep's next run begins its own
                self.tracker.close(failed=failed)
        self._try(lambda: self.tracker.close(failed=failed))

    def _try(self, call: Callable[[], None]) -> None:
        if self.fails:
            return
        try:
            call()
        except Exception as error:  # of any kind
            self.fails = True
            print(f"warning: logger={self.name}: {one_line(error)}; {HAS_ALL}", file=sys.stderr)


class Nothing:
    """No tracker."""

    def __init__(self, *unused: Any) -> None: ...

    def track(self, values: Mapping[str, float], step: int) -> None: ...

    def track_file(self, path: Path) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, folder: Path, title: str, config: Mapping[str, Any], done: int | None) -> None:
        self.folder, self.config, self.done = folder, config, done

    @cached_property
    def board(self) -> Any:
        """The writer, made when something is written: its import takes a second."""
        from torch.utils.tensorboard import SummaryWriter

        is_new = self.done == 0 or not any(self.folder.glob("events.out.tfevents.*"))
        board = SummaryWriter(str(self.folder), purge_step=None if self.done is None else self.done + 1)
        if is_new:
            text = OmegaConf.to_yaml(OmegaConf.create(dict(self.config)))
            board.add_text("configuration", "".join(f"    {line}\n" for line in text.splitlines()))  # Markdown's code
        return board

    def track(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def track_file(self, path: Path) -> None:
        if path.suffix != ".png":
            return  # it lies beside the event files
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.board.add_image(path.stem, np.asarray(image.convert("RGB")), dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        if "board" in self.__dict__:
            self.board.close()


class Wandb:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

    def __init__(self, folder: Path, title: str, config: Mapping[str, Any], done: int | None) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.wandb = wandb
        wandb.setup(wandb.Settings(silent=True, show_warnings=False))  # else a line for each file that it links
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=title,
            id=_run_id(folder, "wandb", lambda: uuid4().hex[:8]),
            dir=str(folder),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            # Hard links, not symbolic ones, which would break when the run folder moves.
            settings=wandb.Settings(silent=True, console="off", symlink=False),
        )

    def track(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})  # W&B's own step may not go back, as that of a resumed run does

    def track_file(self, path: Path) -> None:
        if path.suffix == ".png":
            self.run.log({path.stem: self.wandb.Image(str(path))})
        else:
            self.run.save(str(path), base_path=str(path.parent.parent), policy="now")

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Mlflow:
    """A run of MLflow: files in `mlruns` of the run folder, or on the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, folder: Path, title: str, config: Mapping[str, Any], done: int | None) -> None:
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants a database otherwise
        # In less time than the other processes wait for this one: a server that is silent ends no training.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self.metric, self.param = Metric, Param
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (folder.absolute() / "mlruns").as_uri())
        self.run_id = _run_id(folder, "mlflow", lambda: self._create(title, config))
        self.client.update_run(self.run_id, "RUNNING")
        self.client.log_dict(self.run_id, dict(config), "config.yaml")

    def _create(self, title: str, config: Mapping[str, Any]) -> str:
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = self.client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        run_id = self.client.create_run(number, run_name=title).info.run_id
        params = [self.param(key, str(value)[:500]) for key, value in flatten(config)]
        for first in range(0, len(params), 100):  # what MLflow takes at once, of up to 500 characters each
            self.client.log_batch(run_id, params=params[first : first + 100])
        return run_id

    def track(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [self.metric(name.replace("=", " "), value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=points)

    def track_file(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path), None if path.suffix == ".png" else path.parent.name)

    def close(self, *, failed: bool) -> None:
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


def _run_id(folder: Path, tracker: str, make: Callable[[], str]) -> str:
    """The identifier that a tracker has for the run of a folder; made and kept by the first process."""
    path = folder / IDS
    ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if tracker not in ids:
        ids[tracker] = make()
        write_atomically(path, (json.dumps(ids) + "\n").encode())
    return ids[tracker]
