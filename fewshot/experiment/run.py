"""A whole run, in a folder from which it can be continued: configuration, data, learner, training, test, record."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.learner import Tensors
from fewshot.backbones.checks import WayError
from fewshot.core.device import release_memory, reset_peak_memory
from fewshot.core.distributed import check_shared_device, is_main, main_first, on_rank_zero, world
from fewshot.core.errors import FewshotError
from fewshot.core.files import lock_dir, write_atomically
from fewshot.core.progress import print_note, show_training
from fewshot.engine.evaluate import score_episodes
from fewshot.engine.probe import check_training
from fewshot.experiment.build import (
    Experiment,
    build,
    check_config,
    check_new_run,
    read_sources,
    training_shape,
)
from fewshot.experiment.config import check_keys, resolved, starts_from_extractor
from fewshot.experiment.figures import check_drawable
from fewshot.experiment.make_record import pretrained_weights, title
from fewshot.experiment.parse import typed
from fewshot.experiment.paths import absolute_paths
from fewshot.experiment.run_dir import DATA, EXTRACTOR, TESTS, WEIGHTS, finished_tests, run_folder
from fewshot.experiment.run_tests import plan_tests, write_tests
from fewshot.experiment.start import load_start
from fewshot.experiment.sweeps import note_beginning
from fewshot.experiment.task_sizes import explain_task_sizes
from fewshot.experiment.trackers import IDS, open_tracker
from fewshot.tasks.regression import Regression
from fewshot.training.checkpoint import read_header
from fewshot.training.inputs import inputs_of
from fewshot.training.loop import check_shareable, is_trainable_on, run_training
from fewshot.training.selected import checkpoints, load_selected
from fewshot.training.trained import Trained

_BEFORE_TRAINING = "before the meta-training; the same command begins it, and keeps what was made of data or extractor"


def training_run(cfg: DictConfig) -> tuple[Path, list[Path]]:
    """Train and test what the configuration says, or continue where the run stopped.

    Returns:
        (run folder, folders of its tests, each with a record)

    Raises:
        FewshotError: a mistake in the configuration, the data or the folder, or a loss that is not finite.
        KeyboardInterrupt: with a message that says how to continue.
    """
    check_shared_device(cfg.device, world()[1])
    folder = _checked_folder(cfg)
    if tests := _finished_tests(folder, cfg):
        _check_sources(cfg, folder)
        if is_main():
            print(f"{folder}: finished before; the command that trained it, with force=true, runs it again")
        return folder, tests
    with lock_run(folder):
        with _explain_interrupt(lambda: _BEFORE_TRAINING):
            run = _prepare(cfg, folder)
        with _explain_interrupt(lambda: _how_to_continue(run, folder)):
            _begin(run, folder)
            note_beginning(folder)
            _train(run, folder)
            tests = write_tests(run, load_trained(run, folder), folder / TESTS)
    return folder, tests


@main_first
def _checked_folder(cfg: DictConfig) -> Path:
    check_keys(cfg)
    check_config(cfg)
    folder = run_folder(resolved(cfg))
    if not (folder / "config.yaml").exists():
        check_new_run(cfg)
    return folder


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock a run folder for the processes of this run.

    Raises:
        FewshotError: another run holds it, or it cannot be written to.
    """
    with ExitStack() as locks:
        on_rank_zero(locks.enter_context)(lock_dir(folder, remedy="another run_dir, or another folder of runs"))
        yield


@contextmanager
def _explain_interrupt(how_to_continue: Callable[[], str]) -> Iterator[None]:
    """Let a Ctrl-C in the block say how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_continue()) from None


def _how_to_continue(run: Experiment, folder: Path) -> str:
    plain = re.fullmatch(r"[\w./-]+", str(folder))
    resume = f"`python tools/train.py {f'resume={folder}' if plain else typed('resume', str(folder))}`"
    ways = resume if run.cfg.force else f"the same command, or {resume},"  # which with `force` would begin anew
    last, _ = checkpoints(folder)
    try:
        step = read_header(last)["step"] if last.exists() else 0
    except FewshotError as error:
        return str(error)
    if last.exists() and (step >= run.settings.steps or not is_trainable_on(run.learner, run.training)):
        return f"the training has ended; {ways} runs the missing tests"
    return f"{ways} {f'continues after step {step:,}' if step else 'starts at step 0: it had no checkpoint yet'}"


_finished_tests = on_rank_zero(finished_tests)
_check_sources = main_first(read_sources)
_build = main_first(build)  # rank 0 prepares the data that the others then find
_load_start = main_first(load_start)


@main_first  # no rank loads before rank 0 has written the last checkpoint
def load_trained(run: Experiment, folder: Path, checkpoint: str | None = None) -> Trained:
    """The selected parameters of a run, or those of `checkpoint`: `best`, `last` or a file beside them."""
    return load_selected(run.learner, run.settings, folder, run.device, checkpoint)


def _prepare(cfg: DictConfig, folder: Path) -> Experiment:
    """Data and learner. What cannot be trained or tested leaves no folder and costs no training."""
    if torch.cuda.is_available():
        release_memory()  # of a run before, or the data may not fit
    with explain_task_sizes(cfg):
        run = _build(cfg, None if cfg.force else folder)
        _check_tasks(run, world()[1])
        if starts_from_extractor(cfg) and (cfg.force or not checkpoints(folder)[0].exists()):
            run.start = _load_start(run)  # checkpoints have these weights themselves
    reset_peak_memory(run.device)
    return run


@main_first
def _check_tasks(run: Experiment, processes: int) -> None:
    if is_trainable_on(run.learner, run.training):
        check_shareable(run.learner, run.cfg.train.meta_batch, processes)
        try:
            note = check_training(run.learner, run.training.episodes(0, 1))
        except WayError as error:
            if run.cfg.train.way in (None, run.cfg.way):
                raise
            raise FewshotError(
                f"train.way={run.cfg.train.way}: {run.cfg.algorithm.name} learns a head of {run.cfg.way} ways, and is "
                f"trained with no other number; leave train.way out, or set way={run.cfg.train.way} in its place"
            ) from error
        if note:
            print_note(note)
    elif run.cfg.train.way is not None:
        raise FewshotError(f"train.way={run.cfg.train.way}: {run.cfg.algorithm.name} is not trained; leave it out")
    _ = run.validation, plan_tests(run)  # each is checked when it is made
    if run.cfg.plot:
        check_drawable(run)


@on_rank_zero
def _begin(run: Experiment, folder: Path) -> None:
    """Clear the folder of what `force` replaces, and write what the run begins with."""
    cfg = run.cfg
    if cfg.force:
        for path in checkpoints(folder):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / TESTS, ignore_errors=True)  # of weights that go
        (folder / IDS).unlink(missing_ok=True)
    # The number of a GPU is kept only if a person named it: resumed by several processes, each takes its own.
    saved = absolute_paths(run.config) | {"device": cfg.device if ":" in cfg.device else run.device.type}
    data: dict[str, Any] = {split: source.fingerprint for split, source in run.sources.items()}
    weights = pretrained_weights(run)
    data |= {"shape": run.shape, "classes": run.training.source.names}
    data["validation_classes"] = run.sources["val"].names
    data |= {"image_shape": run.sources["train"].shape} if run.view.crop else {}  # before the crop
    inputs = inputs_of(run.training)
    if inputs is not None and len(inputs.shape) == 3 and inputs.dtype != torch.uint8:
        data["float_images"] = {"unit_range": inputs.unit_range}
    data |= {"outputs": run.training.source.outputs} if isinstance(run.training, Regression) else {}
    data |= ({EXTRACTOR: run.start} if run.start else {}) | ({WEIGHTS: weights} if weights else {})
    write_atomically(folder / DATA, (json.dumps(data, indent=1) + "\n").encode())
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(saved)).encode())
    print(f"{title(cfg)}: run folder {folder}", flush=True)


def _train(run: Experiment, folder: Path) -> None:
    """Train to the last step, from the last checkpoint where there is one."""
    setting = "transductive" if run.cfg.validation.transductive else "inductive"

    def validate(params: Tensors, state: Tensors) -> float:
        scores = score_episodes(
            run.learner, params, state, run.validation, run.cfg.validation.episodes, setting=setting, engine=run.engine
        )
        return float(scores.mean())

    with _display(run, folder) as show:
        run_training(run.learner, run.training, run.settings, run.engine, folder, validate, show)


@contextmanager
def _display(run: Experiment, folder: Path) -> Iterator[Any]:
    """Show the training, on rank 0 alone; yields the callback(step, metrics) of `train`."""
    if not is_main():
        yield lambda step, metrics: None
        return
    settings, (last, _) = run.settings, checkpoints(folder)
    done = read_header(last)["step"] if last.exists() else 0
    if 0 < done < settings.steps:
        print(f"{folder}: goes on from step {done}")
    counts = settings.steps, done, settings.meta_batch, settings.log_every
    way = training_shape(run.cfg)[0]
    task = "" if way == run.cfg.way else f"{way}-way"
    with (
        open_tracker(run.cfg.logger, folder, title(run.cfg), run.config, done) as tracker,
        show_training(tracker.track, title(run.cfg), *counts, task) as callback,
    ):
        yield callback
