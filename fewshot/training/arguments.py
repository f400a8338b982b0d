"""Checks of the arguments of `fewshot.train` and `fewshot.evaluate`, before anything is computed or written."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fewshot.algorithms.learner import Learner, with_defaults
from fewshot.core.checks import check_choice, check_number, did_you_mean, plain_number
from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.engine.evaluate import SETTINGS, check_queries
from fewshot.episodes import Tasks
from fewshot.training.settings import TrainSettings, check_train_settings
from fewshot.training.trained import Trained

DEFAULTS = TrainSettings(
    steps=1000, meta_batch=16, way=None, shot=None, query=None, outer_optimizer="adam", outer_lr=0.001,
    outer_lr_end=None, clip=None, clip_norm=None, nan_guard=False, train_on_val=False, validate_every=0,
    select="best", checkpoint_every=100, log_every=10,
)  # fmt: skip
# The fields of TrainSettings that `train` takes beside its named arguments; the others belong to the tools.
FURTHER = (
    "outer_lr_end",
    "outer_lr_schedule",
    "outer_lr_halve_every",
    "precision",
    "clip",
    "clip_norm",
    "nan_guard",
    "select",
    "checkpoint_every",
    "log_every",
)
METRICS = ("accuracy", "mse")
MEMBERS = ("source", "way", "shot", "query", "metric", "device", "episodes")  # of tasks


def check_learner(learner: Any) -> Learner:
    """The learner, with the attributes that it may lack.

    Raises:
        FewshotError: it is none, but a class, a network or another object.
    """
    if inspect.isclass(learner) or inspect.isfunction(learner):
        raise FewshotError(f"learner={learner.__name__}: give it a network, as in {learner.__name__}(network)")
    if isinstance(learner, Trained):
        raise FewshotError("learner: this one is trained; give a new one, such as MAML(network)")
    if isinstance(learner, nn.Module) and not hasattr(learner, "init"):
        raise FewshotError(f"learner: {type(learner).__name__} is a network; give a learner on it, as in MAML(network)")
    return with_defaults(learner)


def check_tasks(name: str, tasks: Any) -> Tasks:
    """The tasks. Raises FewshotError if an argument of this name is none."""
    if isinstance(tasks, Bank):
        raise FewshotError(f"{name}: a Bank holds examples; give tasks of them, as in Sampler(bank, way=5, shot=1)")
    is_class = inspect.isclass(tasks)
    if is_class or not all(hasattr(tasks, member) for member in MEMBERS):
        kind = tasks.__name__ if is_class else type(tasks).__name__
        raise FewshotError(f"{name}: {kind} is no tasks; give a Sampler or a Regression")
    check_choice(f"{name}.metric", tasks.metric, METRICS)
    return tasks


def check_validation(tasks: Tasks, validation: Any, every: int | None, episodes: int, setting: str) -> None:
    """Raises FewshotError where the arguments of the validation do not fit, or have no use without `validation`."""
    check_choice("setting", setting, SETTINGS)
    check_number("validation_episodes", episodes, int, 1)
    if every is not None:
        check_number("validate_every", every, int, 1)
    if validation is None:
        given = {"validate_every": every is not None, "validation_episodes": episodes != 200}
        for name, is_given in (given | {"setting": setting != "inductive"}).items():
            if is_given:
                raise FewshotError(
                    f"{name}: is of the validation, and there is none; give validation=tasks, or leave it out"
                )
        return
    check_queries(check_tasks("validation", validation))
    if validation.metric != tasks.metric:
        raise FewshotError(
            f"validation: is scored by {validation.metric}, the training by {tasks.metric}; give alike tasks"
        )
    # Functions have neither classes nor tables: another split or seed draws others from the same distribution.
    drawn = [(each.source.split, getattr(each, "seed", id(each))) for each in (validation, tasks)]
    if (validation.source.names or drawn[0] == drawn[1]) and validation.source.fingerprint == tasks.source.fingerprint:
        raise FewshotError(
            "validation: has the very examples of the training, so that it selects what knows these best; give tasks "
            "of other classes, or of functions of another split or seed, or leave it out"
        )


def make_settings(
    learner: Learner, tasks: Tasks, chosen: Mapping[str, Any], further: Mapping[str, Any]
) -> TrainSettings:
    """The settings of a training: those of its caller, else the learner's own, else DEFAULTS.

    Args:
        chosen: named arguments of `train`; None where the caller does not say.
        further: its other arguments.

    Raises:
        FewshotError: an argument has another name than those of FURTHER, or a value is out of range.
    """
    for name in further:
        if name in FURTHER:
            continue
        for owner in (type(learner), type(tasks)):
            if name in inspect.signature(owner).parameters:
                raise FewshotError(f"{name}: no argument of train, but of {owner.__name__}; set it there")
        guess = (
            did_you_mean(name, (*chosen, *FURTHER))
            or f"; beside those with names of their own it takes {', '.join(FURTHER)}"
        )
        raise FewshotError(f"{name}: no argument of train{guess}")
    own, known = dict(getattr(learner, "outer_settings", {})), ("meta_batch", "outer_lr", "outer_optimizer", *FURTHER)
    for name in own.keys() - known:
        guess = did_you_mean(name, known) or f"; it may have {', '.join(known)}"
        raise FewshotError(f"{type(learner).__name__}.outer_settings: has no setting {name}{guess}")
    if chosen["outer_optimizer"] not in (None, own.get("outer_optimizer", DEFAULTS.outer_optimizer)):
        for name in ("outer_lr", "outer_lr_end", "outer_lr_schedule"):
            own.pop(name, None)  # which are for its own optimiser
    settings = replace(DEFAULTS, **{**own, **further, **{n: v for n, v in chosen.items() if v is not None}})
    settings = replace(settings, **{name: plain_number(value) for name, value in vars(settings).items()})
    check_train_settings(settings)
    return settings
