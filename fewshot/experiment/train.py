"""What tools/train.py does: start or resume a run, say what its test found, and draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fewshot.core.distributed import is_main, main_first, process_group
from fewshot.core.errors import FewshotError
from fewshot.experiment.build import build
from fewshot.experiment.config import given_overrides, resolved, training_hash
from fewshot.experiment.figures import check_plot, draw_test
from fewshot.experiment.make_record import title
from fewshot.experiment.run import training_run
from fewshot.experiment.run_dir import TESTS, find_run, run_folder, saved_config
from fewshot.experiment.sweeps import began_in_sweep
from fewshot.experiment.trackers import check_logger, open_tracker, track_test
from fewshot.report.copy_record import check_copy, copy_record
from fewshot.report.records import read_record, summary
from fewshot.training.selected import load_selected

FILES_MOVED = ("root", "data_dir")  # may be given with resume=, of a run whose files moved
AFTER_TRAINING = ("plot", "copy_records_to", "logger")  # may be given with resume=, in place of the run's own


@process_group()
def train(cfg: DictConfig) -> list[Path]:
    """Train and test, or resume a run.

    Returns:
        The records of its tests.

    Raises:
        FewshotError: as `training_run`; or a setting is given that a resumed run has already.
    """
    cfg, known = _checked(cfg)
    folder, tests = training_run(cfg)
    if not is_main():
        return []
    for test in tests:
        print(summary(read_record(test / "record.json"), test))
        if cfg.copy_records_to:
            copy_record(test, _copy_of(cfg, folder))
    picture = _draw(cfg, folder) if cfg.plot else None
    if picture or not known.issuperset(tests):
        with open_tracker(cfg.logger, folder, title(cfg), resolved(cfg)) as tracker:
            for test in tests:
                if test not in known:
                    track_test(tracker, test)
            if picture:
                tracker.track_file(picture)
    return [test / "record.json" for test in tests]


@main_first
def _checked(cfg: DictConfig) -> tuple[DictConfig, set[Path]]:
    """The configuration, of a resumed run its own, and the folders of its tests that are there already."""
    if cfg.resume:
        cfg = _resumed(cfg)
    elif cfg.root is not None:
        raise FewshotError(f"root={cfg.root}: is for resume=<run folder>; of a new run set dataset.reader.root")
    check_logger(cfg.logger)
    if cfg.plot:
        check_plot(cfg)
    config = resolved(cfg)
    folder = run_folder(config)
    if cfg.copy_records_to:
        check_copy(_copy_of(cfg, folder), training_hash(config), cfg.seed)
    if cfg.force and began_in_sweep(folder):  # this job tests it otherwise
        cfg = cfg.copy()
        cfg.force = False
    return cfg, set() if cfg.force else {path.parent for path in (folder / TESTS).glob("*/record.json")}


def _copy_of(cfg: DictConfig, folder: Path) -> Path:
    """Where the records of the run in a folder are copied to: as deep below `copy_records_to` as it is below `runs`."""
    runs, run = Path(cfg.runs).absolute(), folder.absolute()
    named = run_folder(resolved(cfg) | {"run_dir": None}).parts[-2:]  # task and run
    if run.is_relative_to(runs):
        inner = run.relative_to(runs)
    else:  # the whole folder of runs may have moved
        inner = Path(*named) if run.parts[-2:] == named else Path(run.name)
    return Path(cfg.copy_records_to) / inner


def _draw(cfg: DictConfig, folder: Path) -> Path:
    run = build(cfg, folder)
    picture = draw_test(folder, run, load_selected(run.learner, run.settings, folder, run.device))
    print(f"drawn: {picture}")
    return picture


def _resumed(cfg: DictConfig) -> DictConfig:
    """The configuration of the run in the folder `cfg.resume`, with what may be given anew."""
    overrides = {override.split("=")[0]: override for override in given_overrides()}
    allowed = ("resume", "device", *FILES_MOVED, *AFTER_TRAINING)
    if others := [override for key, override in overrides.items() if key not in allowed]:
        raise FewshotError(
            f"resume={cfg.resume}: the run keeps its own settings; leave out {' '.join(others)}, or start a new run"
        )
    moved = {key: cfg[key] for key in FILES_MOVED if key in overrides}
    saved = saved_config(find_run(Path(cfg.resume)), device=cfg.device if "device" in overrides else None, **moved)
    written: Any = OmegaConf.to_container(cfg, resolve=False)  # `${dataset.name}` in it is the run's
    saved.update({"plot": False} | {key: written[key] for key in AFTER_TRAINING if key in overrides})
    return saved
