"""Training and testing in one call each, from Python: `fewshot.train` and `fewshot.evaluate`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewshot.algorithms.learner import Learner, Tensors, with_defaults
from fewshot.core.checks import check_choice, check_number
from fewshot.core.device import fits_on_device, pick_device, tune_malloc
from fewshot.core.errors import FewshotError
from fewshot.core.files import lock_dir, write_atomically
from fewshot.core.paths import expand_path
from fewshot.core.progress import progress_bar
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import SETTINGS, score_episodes
from fewshot.engine.probe import check_training, probe
from fewshot.episodes import Tasks
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import AS_STORED, Sampler
from fewshot.training.inputs import inputs_of
from fewshot.training.loop import check_train_settings, is_trained, load_selected, run_training
from fewshot.training.settings import TrainSettings
from fewshot.training.trained import Trained

DEFAULTS = TrainSettings(
    steps=1000, meta_batch=16, way=None, shot=None, query=None, outer_optimizer="adam", outer_lr=0.001,
    outer_lr_end=None, clip=None, clip_norm=None, nan_guard=False, train_on_val=False, validate_every=0,
    select="best", checkpoint_every=100, log_every=10,
)  # fmt: skip
CONTINUED = ("steps", "validate_every", "select", "checkpoint_every", "log_every")  # may change when a training goes on
LISTED = "training.json"  # what the folder of a training holds


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

    Args:
        learner: on a network, which is moved to the device and stays as it is otherwise.
        tasks: of the training.
        steps: outer steps.
        meta_batch: tasks of each. None, as for the next two: the learner's own (Reptile: 5; LEO: 12), else 16.
        outer_lr: learning rate of the outer loop; else 0.001 (Reptile: 1, falling to 0).
        outer_optimizer: adam | adam_tf | sgd; else adam (Reptile: sgd; LEO: adam_tf).
        validation: tasks of other classes, which select the best parameters; None: the last are taken.
        validation_episodes: how many of them.
        validate_every: outer steps between validations; None: ten validations in all.
        setting: of the validation, see `evaluate`.
        folder: keeps the checkpoints and metrics.jsonl; the same call continues a training that is there. None: the
            training leaves nothing on disk.
        engine: auto | vmap | compiled | loop | learn2learn, or an `Engine`.
        device: auto, a GPU where there is one, or a name, such as cpu.
        progress: whether to show a progress bar, or lines where stdout is no terminal.
        settings: other fields of `TrainSettings`: outer_lr_end, clip, clip_norm, nan_guard, select, checkpoint_every,
            log_every.

    Raises:
        FewshotError: the network does not fit the tasks, a setting is out of range, a loss is not finite, or the folder
            holds another training.
    """
    check_number("steps", steps, int, 0)
    chosen = {"meta_batch": meta_batch, "outer_lr": outer_lr, "outer_optimizer": outer_optimizer}
    settings |= {name: value for name, value in chosen.items() if value is not None}
    own = dict(getattr(learner, "outer_settings", {}))
    if validation is not None:
        own["validate_every"] = max(1, steps // 10) if validate_every is None else validate_every
    made = replace(DEFAULTS, steps=steps, **(own | settings))
    check_number("meta_batch", made.meta_batch, int, 1)
    check_number("outer_lr", made.outer_lr, float, 0)
    check_train_settings(made)
    place, engine = pick_device(device), Engine(engine) if isinstance(engine, str) else engine
    learner, tasks = with_defaults(learner), move_tasks(tasks, place)
    validation = None if validation is None else move_tasks(validation, place)
    if isinstance(learner.backbone, nn.Module):
        learner.backbone.to(place)
    tune_malloc()
    first = tasks.episodes(0, 1)
    notes = [*probe(learner, first[0]).notes, check_training(learner, first) if is_trained(learner, tasks) else ""]
    for note in filter(None, notes if progress else ()):
        print(f"note: {note}", file=sys.stderr)

    inputs = inputs_of(tasks)

    def validate(params: Tensors, state: Tensors) -> float:
        assert validation is not None
        trained = Trained(learner, params, state, None, "", 0, 0, 0.0, inputs)
        return float(evaluate(trained, validation, episodes=validation_episodes, setting=setting, engine=engine).mean())

    with ExitStack() as stack:
        if folder is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fewshot-")))
            made = replace(made, checkpoint_every=max(1, steps))
        else:
            path = expand_path(folder)
            stack.enter_context(lock_dir(path))
            _claim(path, learner, tasks, made)
        show = stack.enter_context(_display(learner, tasks, made, path, progress))
        run_training(learner, tasks, made, engine, path, validate, show)
        return replace(load_selected(learner, made, path, place), inputs=inputs)


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
        setting: `inductive`, each query is predicted alone, beside the support set; or `transductive`, the queries of
            an episode share one batch, so that batch norms let each depend on the others.
        engine: as in `train`.

    Raises:
        FewshotError: the learner does not fit the tasks.
    """
    check_number("episodes", episodes, int, 1)
    check_choice("setting", setting, SETTINGS)
    tasks = move_tasks(tasks, trained.device)
    if trained.inputs is not None and isinstance(tasks, Sampler) and tasks.view == AS_STORED:
        tasks = trained.inputs.sampler(tasks)
    return score_episodes(
        trained.learner, trained.params, trained.state, tasks, episodes,
        transductive=setting == "transductive", engine=Engine(engine) if isinstance(engine, str) else engine,
    )  # fmt: skip


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


def _claim(folder: Path, learner: Learner, tasks: Tasks, settings: TrainSettings) -> None:
    """Write what the folder holds, or check that it holds this training.

    Raises:
        FewshotError: it holds another.
    """
    options = {
        name: value
        for name, value in vars(learner).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_") and name != "test_steps"
    }
    fields = {"way": tasks.way, "shot": tasks.shot, "query": tasks.query, "seed": getattr(tasks, "seed", None)}
    training: dict[str, Any] = {
        "learner": {"class": type(learner).__name__, **options},
        "tasks": {"data": tasks.source.fingerprint, **fields},
        "settings": {name: value for name, value in asdict(settings).items() if name not in CONTINUED},
    }
    listed = folder / LISTED
    if listed.exists():
        try:
            saved = json.loads(listed.read_text(encoding="utf-8"))
            other = [name for part in training for name in training[part] if training[part][name] != saved[part][name]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FewshotError(f"{listed}: damaged, or of another version; choose another folder") from error
        if other:
            raise FewshotError(f"{folder}: holds another training (other {', '.join(other)}); choose another folder")
    elif (folder / "config.yaml").exists() or (folder / "checkpoints").exists():
        raise FewshotError(f"{folder}: holds a run of tools/train.py; choose another folder")
    else:
        write_atomically(listed, (json.dumps(training, indent=1) + "\n").encode())


@contextmanager
def _display(
    learner: Learner, tasks: Tasks, settings: TrainSettings, folder: Path, progress: bool
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show outer steps as they are done; yields the callback(step, metrics) of `run_training`."""
    if not progress:
        yield lambda step, metrics: None
        return
    title = f"{type(learner).__name__} {tasks.way}-way {tasks.shot}-shot"
    with progress_bar(title, settings.steps) as advance:
        done, text = 0, ""

        def show(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal done, text
            if tasks.metric in metrics:
                text = f"{tasks.metric} {metrics[tasks.metric]:.3g}"
            advance(text, by=step - done)
            done = step

        yield show
