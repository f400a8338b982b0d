"""The record of a test: the run, its protocol, its scores, and what it cost."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fewshot.core.device import device_name, peak_memory_bytes
from fewshot.core.distributed import world
from fewshot.core.environment import code, environment
from fewshot.episodes import Tasks
from fewshot.experiment.build import Experiment, training_shape
from fewshot.experiment.config import is_on_features, resolved, training_hash, training_settings
from fewshot.experiment.protocol import Protocol
from fewshot.experiment.recipes import paper_steps, recipe_changes
from fewshot.report import records
from fewshot.report.records import Record
from fewshot.report.statistics import ci95
from fewshot.tasks.regression import Regression
from fewshot.training.trained import Trained

Scores = dict[str, np.ndarray]  # by the heading of a column of episodes.csv: [episodes]


def make_record(
    run: Experiment,
    trained: Trained,
    protocol: Protocol,
    tasks: Tasks,
    setting: str,
    scores: Scores,
    steps: Any,
    variances: np.ndarray | None = None,
) -> Record:
    """The record of one test.

    Args:
        tasks: of the protocol.
        setting: transductive or inductive.
        scores: of each number of adaptation steps.
        steps: what the record calls these: a number, a list, or words.
        variances: in regression of each episode, see `query_variances`.
    """
    cfg = run.cfg
    source = tasks.source
    train_tasks = trained.steps * cfg.train.meta_batch
    gradients = getattr(run.learner, "gradient_evaluations", None if train_tasks else 0)  # of one task, if they count
    splits = ("train", "val") if cfg.train.train_on_val else ("train",)
    validation = trained.validation
    weights = pretrained_weights(run)
    about = dict(source.metadata) | ({"extractor": run.start} if run.start else {})
    extractor = about.get("extractor", {})
    return {
        "format": records.FORMAT,
        "algorithm": cfg.algorithm.name,
        "backbone": network_name(cfg, extractor, weights),
        "weights": weights,  # file and hash of the pretrained weights of the backbone
        "seed": cfg.seed,
        "recipe": cfg.recipe,
        "protocol": {
            "name": protocol.name,
            "dataset": dataset_name(cfg),
            "split": protocol.split,
            "way": cfg.way,
            "shot": cfg.shot,
            "query": protocol.query,
            "episodes": protocol.episodes,
            "episode_seed": protocol.episode_seed,
            "rotations": protocol.rotations,
            "view": tasks.source.description if isinstance(tasks, Regression) else view_words(cfg),
            "setting": setting,
            "adaptation_steps": steps,
            "train_on_val": cfg.train.train_on_val,
            "selection": trained.selection,
            "manifest": tasks.manifest(0, protocol.episodes),
        },
        "validation": validation
        and {
            **validation,
            "episodes": cfg.validation.episodes,
            "adaptation_steps": getattr(run.learner, "adaptation_steps", run.learner.test_steps),
        },
        "test": _summary(tasks.metric, scores, steps, variances) | {"episodes": protocol.episodes},
        "queries_independent": run.behaviour.queries_independent,  # so that the settings do not differ
        "cost": {
            "train_seconds": round(trained.train_seconds, 2),
            "extractor_seconds": extractor.get("train_seconds"),
            "nan_guarded_steps": trained.nan_guarded,
            "train_tasks": train_tasks,
            "gradient_evaluations": None if gradients is None else train_tasks * gradients,
            "tasks_per_second": round(train_tasks / trained.train_seconds, 2) if trained.train_seconds else None,
            "peak_memory_bytes": trained.peak_memory_bytes if trained.steps else peak_memory_bytes(run.device),
            "device": " and ".join(trained.devices) or (None if trained.steps else device_name(run.device)),
            "processors": list(trained.processors),  # of the training, on whatever the device was
            "processes": trained.processes if trained.steps else world()[1],
        },
        "code": code() | {"training": list(trained.code)},
        "environment": environment() | {"training": list(trained.software)},  # of the test, and of the training
        "data": {
            "fingerprint": source.image_fingerprint,
            "features_fingerprint": source.fingerprint if is_on_features(cfg) else None,
            "train_fingerprint": "+".join(run.sources[split].fingerprint for split in splits),
            "about": about,
            "view": None if isinstance(tasks, Regression) else _view(run, source.shape),
        },
        "command": _command(),
    }


def _command() -> str:
    """The command line of this process, with torchrun where that started it."""
    _, size = world()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    nodes = [f"--nnodes={size // local}"] if size > local else []
    launcher = ["torchrun", *nodes, f"--nproc_per_node={local}"] if size > 1 else ["python"]
    return shlex.join([*launcher, *sys.argv])


def title(cfg: DictConfig) -> str:
    """A run in a few words, for progress lines."""
    task = {"dataset": cfg.dataset.name, "way": cfg.way, "shot": cfg.shot}
    return f"{cfg.algorithm.name} {records.task_name(task)}"


def task_fields(cfg: DictConfig, steps: int) -> dict[str, Any]:
    """Record fields of the task that a run was trained for, and of its training: `steps` outer steps so far."""
    way, shot, query = training_shape(cfg)
    config, train = resolved(cfg), {"steps": steps, "paper_steps": paper_steps(cfg), "engine": cfg.engine}
    return {
        "dataset": dataset_name(cfg),
        "way": cfg.way,
        "shot": cfg.shot,
        "train": {"way": way, "shot": shot, "query": query} | train,
        "config": training_hash(config),
        "settings": training_settings(config),
        "recipe_changes": recipe_changes(cfg),  # settings that are not as the recipe has them
    }


def _summary(metric: str, scores: Scores, adaptation_steps: Any, variances: np.ndarray | None) -> dict[str, Any]:
    """Mean and interval of the test, in regression also R2; by number of adaptation steps if there are several."""
    means = [float(each.mean()) for each in scores.values()]
    columns = {metric: means, "ci95": [None if len(each) < 2 else ci95(each) for each in scores.values()]}
    if variances is not None:
        variance = float(variances.mean())
        columns["r2"] = [1 - mean / variance if variance else None for mean in means]
    if not isinstance(adaptation_steps, list):
        return {name: values[0] for name, values in columns.items()}
    counts = [str(count) for count in adaptation_steps]
    return {name: dict(zip(counts, values, strict=True)) for name, values in columns.items()}


def query_variances(tasks: Tasks, episodes: int) -> np.ndarray:
    """Of each episode the squared error of predicting its queries by their mean, [episodes] float64: R2 is 0 there."""
    parts = []
    for first in range(0, episodes, 1000):
        y = tasks.episodes(first, min(1000, episodes - first)).query_y.double()
        parts.append(y.reshape(*y.shape[:2], -1).var(1, correction=0).mean(1).cpu().numpy())
    return np.concatenate(parts)


def _view(run: Experiment, shape: tuple[int, ...]) -> dict[str, Any]:
    """How the learner sees the images: the transform, `augment` in training, and the shapes before and after."""
    shapes = {"from": shape, "to": run.view.output_shape(shape)}
    return asdict(run.view) | {"augment": run.cfg.dataset.augment.episodes} | shapes


def dataset_name(cfg: DictConfig) -> str:
    """The dataset's name; marked where it is only a part of a published dataset."""
    part = cfg.features.name != "published" and cfg.dataset.reader.get("allow_partial", False)
    return f"{cfg.dataset.name} (part)" if part else cfg.dataset.name


def view_words(cfg: DictConfig) -> str:
    """How the images are changed at test, in words."""
    crop, shape = cfg.dataset.crop, cfg.dataset.shape
    words = [f"crop {crop}"] * (crop is not None) + [f"seen as {'x'.join(map(str, shape or ()))}"] * (shape is not None)
    return ", ".join(words) or "whole images"


def pretrained_weights(run: Experiment) -> dict[str, str] | None:
    """{"file", "sha256"} of the pretrained weights that the backbone began with; None without."""
    weights = getattr(run.learner.backbone, "weights", None)
    return weights if isinstance(weights, dict) else None  # a person's own network may have parameters of this name


def network_name(cfg: DictConfig, extractor: Mapping[str, Any], weights: Mapping[str, str] | None) -> str:
    """The name of the backbone and of the extractor whose features it takes, each with the hash of its weights.

    Args:
        extractor: what the features' metadata says of it.
        weights: {"file", "sha256"} of the backbone's pretrained weights.
    """
    plain, own = cfg.backbone.name == "identity", f"{cfg.backbone.name}{_weights_label(weights)}"
    if not is_on_features(cfg):
        return "pixels" if plain else own
    on = f"{cfg.features.name}{_weights_label(extractor.get('weights'))} features"
    return on if plain else f"{own} on {on}"


def _weights_label(weights: Mapping[str, str] | None) -> str:
    return f"-{weights['sha256']:.8}" if weights else ""
