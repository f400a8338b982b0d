"""A whole run: trained and tested as a configuration says, in a folder from which it can be continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.learner import Tensors
from fewshot.core.device import reset_peak_memory
from fewshot.core.distributed import is_main, main_first, on_rank_zero, world
from fewshot.core.files import lock_dir, write_atomically
from fewshot.core.paths import absolute_paths
from fewshot.core.progress import TrainingDisplay
from fewshot.engine.evaluate import evaluate
from fewshot.engine.probe import check_training
from fewshot.episodes import Tasks
from fewshot.experiment.build import (
    Experiment,
    build,
    check_dataset,
    print_note,
    read_sources,
    tasks_of,
    training_tasks,
)
from fewshot.experiment.config import resolved
from fewshot.experiment.make_record import make_record, protocol_slug, setting, steps_of
from fewshot.experiment.run_dir import DATA, is_finished, run_folder
from fewshot.report.records import read_record, task_name, write_record
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.loop import check_shareable, checkpoints, is_trained, load_selected, train
from fewshot.training.settings import TrainSettings


def training_run(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Train and test what the configuration says, or continue where it stopped; (run folder, record).

    Raises:
        FewshotError: a mistake in configuration, data or folder, or a loss that is not finite.
    """
    check_dataset(cfg)
    folder = run_folder(resolved(cfg))
    if on_rank_zero(lambda: is_finished(folder, cfg)) and not cfg.force:
        main_first(lambda: read_sources(cfg, folder))
        return folder, read_record(folder / "record.json")
    with ExitStack() as held:
        on_rank_zero(lambda: held.enter_context(lock_dir(folder)))
        return folder, _train_and_test(folder, cfg)


def test_inductive(cfg: DictConfig, folder: Path) -> Path | None:
    """Test a finished run once more, no query seeing another; the folder of that test, or None where its own was so."""
    other = cfg.copy()
    other.test.transductive = False
    run = main_first(lambda: build(other, folder))
    reset_peak_memory(run.device)
    if setting(run, cfg) == "inductive":
        return None
    place = folder / "tests" / protocol_slug(other, run)
    with ExitStack() as held:
        on_rank_zero(lambda: held.enter_context(lock_dir(folder)))
        if not on_rank_zero(lambda: _is_of_the_same_weights(place, folder)):
            trained = main_first(
                lambda: load_selected(run.learner, TrainSettings(**run.config["train"]), folder, run.device)
            )
            write_record(place, *make_record(run, other, trained))
    return place


def _is_of_the_same_weights(test: Path, run: Path) -> bool:
    """Whether a test is there, and not one of weights from the midst of the training."""

    def weights(folder: Path) -> tuple[Any, ...]:
        record = read_record(folder / "record.json")
        return record["cost"]["train_tasks"], record["validation"], record["protocol"]["selection"]

    return (test / "record.json").exists() and weights(test) == weights(run)


def _train_and_test(folder: Path, cfg: DictConfig) -> dict[str, Any]:
    processes = world()[1]
    # Process 0 prepares data that the others then find, and says alone what is wrong.
    run = main_first(lambda: _built(folder, cfg, processes))
    settings = TrainSettings(**run.config["train"])
    training, validation = training_tasks(run, cfg), tasks_of(run, cfg, "val", cfg.seed)
    on_rank_zero(lambda: _begin(folder, cfg, run, training))

    def validate(params: Tensors, state: Tensors) -> float:
        scores = evaluate(
            run.learner, params, state, validation, cfg.test.validation_episodes,
            transductive=cfg.test.transductive, engine=run.engine,
        )  # fmt: skip
        return float(scores.mean())

    with _display(folder, cfg, settings) as show:
        train(run.learner, training, settings, run.engine, folder, validate, show)
    # The others wait here for the last checkpoint.
    trained = main_first(lambda: load_selected(run.learner, settings, folder, run.device))
    record, scores = make_record(run, cfg, trained)
    write_record(folder, record, scores)
    return record


def _built(folder: Path, cfg: DictConfig, processes: int) -> Experiment:
    """The experiment; what cannot be trained or tested should leave no folder, nor cost the training first."""
    run = build(cfg, None if cfg.force else folder)
    reset_peak_memory(run.device)
    training = training_tasks(run, cfg)
    if is_trained(run.learner, training):
        check_shareable(run.learner, cfg.train.meta_batch, processes)
        if note := check_training(run.learner, training.episodes(0, 1)):
            print_note(note)
    for split, seed in (("val", cfg.seed), (cfg.test.split, cfg.test.seed)):
        tasks_of(run, cfg, split, seed)
    steps_of(cfg, run.learner)
    return run


def _begin(folder: Path, cfg: DictConfig, run: Experiment, training: Tasks) -> None:
    """Clear the folder of what `force` does over, and write what the run begins with."""
    if cfg.force:
        for path in (folder / "record.json", *checkpoints(folder)):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / "tests", ignore_errors=True)  # they are of the weights that go
    # A GPU by its number only where a person named one: resumed by several processes, each takes its own.
    saved = absolute_paths(run.config) | {"device": cfg.device if ":" in cfg.device else run.device.type}
    data: dict[str, Any] = {name: source.fingerprint for name, source in run.sources.items()}
    data |= {"shape": run.shape, "classes": training.source.names}
    write_atomically(folder / DATA, (json.dumps(data, indent=1) + "\n").encode())
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(saved)).encode())


@contextmanager
def _display(folder: Path, cfg: DictConfig, settings: TrainSettings) -> Iterator[Callable[..., None]]:
    """What shows the steps as they are done: in process 0 alone."""
    if not is_main():
        yield lambda step, values: None
        return
    last, _ = checkpoints(folder)
    start = load_checkpoint(last, "cpu")[1]["step"] if last.exists() else 0
    if 0 < start < settings.steps:
        print(f"{folder}: goes on from step {start}")
    title = f"{cfg.algorithm.name} {task_name({'dataset': cfg.dataset.name, 'way': cfg.way, 'shot': cfg.shot})}"
    with TrainingDisplay(folder, title, settings.steps, start, settings.meta_batch, settings.log_every) as display:
        yield display.update
