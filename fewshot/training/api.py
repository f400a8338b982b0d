"""Training and testing in one call each, from Python: `fewshot.train` and `fewshot.evaluate`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.core.checks import check_number, plain_number
from fewshot.core.device import fits_on_device, pick_device, release_memory, tune_malloc
from fewshot.core.distributed import world
from fewshot.core.errors import FewshotError
from fewshot.core.files import lock_dir
from fewshot.core.paths import expand_path
from fewshot.core.progress import show_training
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import score_episodes
from fewshot.engine.probe import check_training, probe
from fewshot.episodes import Tasks
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import AS_STORED, Sampler
from fewshot.training.arguments import check_learner, check_tasks, check_validation, make_settings
from fewshot.training.checkpoint import read_header
from fewshot.training.folder import claim_folder, describe_tasks, describe_training
from fewshot.training.inputs import Inputs, inputs_of
from fewshot.training.loop import is_trainable_on, run_training
from fewshot.training.selected import checkpoints, load_selected
from fewshot.training.settings import TrainSettings, check_new_rate
from fewshot.training.trained import Trained


def train(
    learner: Learner,
    tasks: Tasks,
    *,
    steps: int = 1000,
    meta_batch: int | None = None,
    outer_lr: float | None = None,
    outer_optimizer: str | None = None,
    validation: Tasks | None = None,
    validation_episodes: int = 200,
    validate_every: int | None = None,
    setting: str = "inductive",
    folder: str | Path | None = None,
    engine: str | Engine = "auto",
    device: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Trained:
    """Meta-train a learner, such as `MAML(network)`, on tasks, such as `Sampler(bank, way=5, shot=1)`.

    The draws depend on the seed of the tasks alone, and the start on the weights of the network and on those that a
    learner such as LEO draws when it is made. A learner that learns nothing in training, such as `Nearest`, takes no
    step, and is called so too. Ctrl-C ends the training with KeyboardInterrupt, after a checkpoint where there is a
    `folder`. Some settings stay for the whole process, after
    `evaluate` and `adapt` too: no fused attention, which has no second derivative; on a GPU no TensorFloat-32 in
    convolutions; glibc keeps large freed blocks; and after the engine `loop` threads that are started anew compute on
    one core.

    Args:
        learner: on a network, which is moved to the device and put into eval(); its weights stay as they are.
        tasks: of the training.
        steps: outer steps. A training in a folder goes on to more of them, but not where its rate falls to
            `outer_lr_end`, or its learner has stages, since each step then depends on their number.
        meta_batch: tasks of each. None, as for the next two: the learner's own, its `outer_settings`, else 16.
        outer_lr: learning rate of the outer loop; else 0.001.
        outer_optimizer: adam | adam_tf | sgd; else adam.
        validation: tasks of other classes, which select the best parameters; None: the last are taken. The next three
            are for it.
        validation_episodes: how many of them.
        validate_every: outer steps between validations; None: a tenth of the steps.
        setting: of the validation, see `evaluate`.
        folder: keeps the checkpoints and metrics.jsonl; the same call continues a training that is there, from the
            parameters there, or returns it. The code of a learner or network and its attributes that begin with _ are
            not compared: take another folder where they change. None: the training leaves nothing on disk.
        engine: auto | vmap | compiled | loop | learn2learn, or an `Engine`.
        device: auto, a GPU where there is one, or a name, such as cpu.
        progress: whether to show a progress bar, or lines where stdout is no terminal.
        settings: other fields of `TrainSettings`: outer_lr_end, outer_lr_schedule, outer_lr_halve_every, precision,
            clip, clip_norm, nan_guard, select, checkpoint_every, log_every.

    Raises:
        FewshotError: an argument is unknown or out of range, the network does not fit the tasks, a loss is not finite,
            the folder holds another training, or torch.distributed is initialised with several processes.
    """
    if world()[1] > 1:
        raise FewshotError("train: runs in one process; several are for tools/train.py by torchrun")
    learner, tasks = check_learner(learner), check_tasks("tasks", tasks)
    check_validation(tasks, validation, validate_every, validation_episodes, setting)
    if folder is not None and not (isinstance(folder, str | os.PathLike) and os.fspath(folder)):
        raise FewshotError(f"folder={folder!r}: must be a path, or None to leave nothing on disk")
    steps = check_number("steps", steps, int, 0)
    validation_episodes = plain_number(validation_episodes)
    if validation is not None and validate_every is None:
        validate_every = max(1, steps // 10)
    chosen = {"meta_batch": meta_batch, "outer_lr": outer_lr, "outer_optimizer": outer_optimizer}
    train_settings = make_settings(
        learner, tasks, chosen | {"steps": steps, "validate_every": validate_every}, settings
    )
    if folder is None or not checkpoints(expand_path(folder))[0].exists():
        check_new_rate(train_settings.outer_optimizer, train_settings.outer_lr)
    torch_device, engine = pick_device(device), _engine(engine, steps)
    if torch_device.type == "cuda":
        release_memory()  # of a training before, or the data may not fit
    tasks = move_tasks(tasks, torch_device)
    validation = None if validation is None else move_tasks(validation, torch_device)
    if isinstance(learner.backbone, nn.Module):
        learner.backbone.to(torch_device)
    tune_malloc()
    first, inputs = tasks.episodes(0, 1), inputs_of(tasks)
    notes = [*probe(learner, first[0]).notes, check_training(learner, first) if is_trainable_on(learner, tasks) else ""]
    for note in filter(None, notes if progress else ()):
        print(f"note: {note}", file=sys.stderr)
    described = None
    if validation is not None:
        first_validation = _seen_tasks(validation, inputs).episodes(0, 1)
        types = [str(each.support_x.dtype).removeprefix("torch.") for each in (first_validation, first)]
        if types[0] != types[1]:
            raise FewshotError(
                f"validation: its examples are {types[0]}, and those of the training {types[1]}; give one type"
            )
        probe(learner, first_validation[0])
        scores = {"setting": setting, "episodes": validation_episodes, "test_steps": int(learner.test_steps)}
        described = {"validation": type(validation).__name__, **describe_tasks(validation), **scores}

    def validate(params: Tensors, state: Tensors) -> float:
        assert validation is not None
        seen = _seen_tasks(validation, inputs)
        scores = score_episodes(learner, params, state, seen, validation_episodes, setting=setting, engine=engine)
        return float(scores.mean())

    with ExitStack() as stack:
        if folder is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fewshot-")))
            train_settings = replace(train_settings, checkpoint_every=max(1, steps))
        else:
            path = expand_path(folder)
            stack.enter_context(lock_dir(path, remedy="another folder"))
            claim_folder(path, describe_training(learner, tasks, train_settings, described))
            last, _ = checkpoints(path)
            if last.exists() and (done := read_header(last)["step"]) > train_settings.steps:
                raise FewshotError(f"steps={steps}: {path} holds {done:,} already; give as many, or another folder")
        show = stack.enter_context(_display(learner, tasks, train_settings, path, progress))
        run_training(learner, tasks, train_settings, engine, path, validate, show)
        return replace(load_selected(learner, train_settings, path, torch_device), inputs=inputs)


def evaluate(
    trained: Trained,
    tasks: Tasks,
    *,
    episodes: int = 600,
    setting: str = "inductive",
    engine: str | Engine = "auto",
) -> np.ndarray:
    """The score of each test episode, [episodes] float64: accuracy, or in regression mean squared error.

    Args:
        trained: of `train` or `load_run`.
        tasks: such as `Sampler(test, way=5, shot=1)`. Images are resized and normalised as in the training, unless the
            sampler has a view of its own.
        episodes: the first so many are tested.
        setting: `inductive`, each query shares a batch with the support set alone; or `transductive`, the queries of
            an episode share one batch, so that batch norms let each depend on the others.
        engine: as in `train`.

    Raises:
        FewshotError: the learner does not fit the tasks, or an unknown setting.
    """
    if not isinstance(trained, Trained):
        raise FewshotError(f"trained: {type(trained).__name__} is not trained; give what train or load_run returns")
    episodes = check_number("episodes", episodes, int, 1)
    tasks = _seen_tasks(move_tasks(check_tasks("tasks", tasks), trained.device), trained.inputs)
    learner, params, state = trained.learner, trained.params, trained.state
    return score_episodes(learner, params, state, tasks, episodes, setting=setting, engine=_engine(engine))


def move_tasks(tasks: Tasks, device: torch.device) -> Tasks:
    """The same tasks on a device; the examples of a bank only if they fit."""
    if tasks.device == device:
        return tasks
    if isinstance(tasks, Sampler):
        fits = fits_on_device(tasks.bank.examples.nbytes, device)
        return replace(tasks, bank=tasks.bank.to(device, examples=fits))
    if isinstance(tasks, Regression):
        return replace(tasks, source=tasks.source.to(device))
    raise FewshotError(f"tasks are on {tasks.device}, and the learner on {device}; give tasks on the same device")


def _engine(engine: str | Engine, steps: int = 0) -> Engine:
    return engine if isinstance(engine, Engine) else Engine(engine, steps=steps)


def _seen_tasks(tasks: Tasks, inputs: Inputs | None) -> Tasks:
    """The tasks with examples as a learner of these inputs sees them, unless they have a view of their own.

    Nothing that is only scored is augmented.
    """
    if inputs is None or not isinstance(tasks, Sampler):
        return tasks
    if tasks.view != AS_STORED:
        return replace(tasks, view=replace(tasks.view, augment="none"))
    return inputs.sampler(tasks)


@contextmanager
def _display(
    learner: Learner, tasks: Tasks, settings: TrainSettings, folder: Path, progress: bool
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show outer steps as they are done; yields the callback(step, metrics) of `run_training`."""
    if not progress:
        yield lambda step, metrics: None
        return
    title, last = f"{type(learner).__name__} {tasks.way}-way {tasks.shot}-shot", checkpoints(folder)[0]
    done = read_header(last)["step"] if last.exists() else 0
    counts = settings.steps, done, settings.meta_batch, settings.log_every
    with show_training(lambda metrics, step: None, title, *counts) as show:
        yield show
