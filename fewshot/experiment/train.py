"""What tools/train.py does: start or resume a run, say what its test found, and draw it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from fewshot.core.distributed import is_main, main_first, process_group
from fewshot.core.errors import FewshotError
from fewshot.experiment.build import build
from fewshot.experiment.config import given_overrides, resolved
from fewshot.experiment.figures import check_plot, draw_test
from fewshot.experiment.make_record import title
from fewshot.experiment.run import training_run
from fewshot.experiment.run_dir import TESTS, find_run, run_folder, saved_config
from fewshot.experiment.sweeps import began_in_sweep
from fewshot.experiment.trackers import check_logger, open_tracker, track_test
from fewshot.report.records import copy_record, read_record, summary
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
            runs, place = Path(cfg.runs).absolute(), test.absolute()
            copy_record(place, Path(cfg.copy_records_to), runs if place.is_relative_to(runs) else place.parents[2])
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
    folder = run_folder(resolved(cfg))
    if cfg.force and began_in_sweep(folder):  # this job tests it otherwise
        cfg = cfg.copy()
        cfg.force = False
    return cfg, set() if cfg.force else {path.parent for path in (folder / TESTS).glob("*/record.json")}


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
    saved.update({"plot": False} | {key: cfg[key] for key in AFTER_TRAINING if key in overrides})
    return saved
