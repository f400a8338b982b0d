"""Train a learner, test it, leave a record: `python tools/train.py algorithm=maml dataset=omniglot way=5 shot=1`.

`-m` with comma-separated values sweeps and ends with a table. `resume=<run folder>` continues a run.
`torchrun --nproc_per_node=2 tools/train.py ...` shares the tasks of one run among processes or GPUs.
"""

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from fewshot.core.distributed import is_main, process_group
from fewshot.core.errors import FewshotError
from fewshot.experiment.build import build
from fewshot.experiment.cli import main
from fewshot.experiment.config import apply_recipe, given_overrides
from fewshot.experiment.figures import check_plot, draw_test
from fewshot.experiment.run import test_inductive, training_run
from fewshot.experiment.run_dir import saved_config
from fewshot.report.records import copy_record, read_record, summary
from fewshot.training.loop import load_selected
from fewshot.training.settings import TrainSettings

MOVED = ("root", "data_dir")  # what may be said of a run whose files moved
AGAIN = ("plot", "inductive_too", "copy_records_to")  # what may be said of a run that is resumed


def complete(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Fill in what a recipe says; a run that is resumed has all in its own configuration."""
    if not cfg.resume:
        apply_recipe(cfg, overrides)


def train(cfg: DictConfig) -> list[Path]:
    with (
        process_group()
    ):  # inside: launchers send this function to other processes, and a decorated one cannot be pickled
        return _train(cfg)


def _train(cfg: DictConfig) -> list[Path]:
    overrides = given_overrides()
    if cfg.resume:
        named = {override.split("=")[0]: override for override in overrides}
        if others := [named[key] for key in named if key not in ("resume", "device", *MOVED, *AGAIN)]:
            raise FewshotError(f"resume={cfg.resume}: the run keeps its own settings; leave out {' '.join(others)}")
        given = {"plot": False} | {key: cfg[key] for key in AGAIN if key in named}
        moved = {key: cfg[key] for key in MOVED if key in named}
        cfg = saved_config(Path(cfg.resume), device=None if cfg.device == "auto" else cfg.device, **moved)
        cfg.update(given)
    else:
        if cfg.root is not None:
            raise FewshotError(f"root={cfg.root}: is for resume=<run folder>; of a new run set dataset.reader.root")
        complete(cfg, overrides)
    if cfg.plot:
        check_plot(cfg)
    folder, _ = training_run(cfg)
    _show(folder, cfg, folder)
    tests = [folder]
    if cfg.inductive_too and (again := test_inductive(cfg, folder)) is not None:
        _show(again, cfg, folder)
        tests.append(again)
    if not is_main():
        return []
    if cfg.plot:
        experiment = build(cfg, folder)
        trained = load_selected(
            experiment.learner, TrainSettings(**experiment.config["train"]), folder, experiment.device
        )
        print(f"drawn: {draw_test(folder, experiment, cfg, trained)}")
    return [test / "record.json" for test in tests]


def _show(test: Path, cfg: DictConfig, run: Path) -> None:
    """Say what a test found, and copy its record and scores where `copy_records_to` says."""
    if not is_main():
        return
    print(summary(read_record(test / "record.json"), test))
    if cfg.copy_records_to:
        copy_record(test, Path(cfg.copy_records_to), Path(cfg.runs) if run.is_relative_to(cfg.runs) else run.parent)


if __name__ == "__main__":
    main(train, "train", complete)
