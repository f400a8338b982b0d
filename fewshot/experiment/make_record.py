"""The test of trained parameters on fixed episodes, and the record that it leaves."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from fewshot.algorithms.learner import override_test_steps
from fewshot.core.device import peak_memory_bytes
from fewshot.core.distributed import is_main, rank_slice, world
from fewshot.core.errors import FewshotError
from fewshot.core.progress import progress_bar
from fewshot.engine.evaluate import ci95, evaluate
from fewshot.experiment.build import Experiment, training_shots
from fewshot.experiment.config import trained_with
from fewshot.report import records
from fewshot.tasks.functions import Functions
from fewshot.training.loop import Trained

Scores = dict[str, np.ndarray]  # by the heading of a column of episodes.csv: [episodes]


def make_record(run: Experiment, trained: Trained) -> tuple[dict[str, Any], Scores]:
    """Test on the run's fixed test episodes.

    Returns:
        (record, score of each episode by number of steps)

    Raises:
        FewshotError: `test.steps` is wrong, or a score is not finite.
    """
    cfg, tasks = run.cfg, run.test
    scores, adaptation_steps = _scores(run, trained)
    source, functions = tasks.source, isinstance(tasks.source, Functions)
    train_tasks = trained.steps * cfg.train.meta_batch
    splits = ("train", "val") if cfg.train.train_on_val else ("train",)
    validation = trained.validation
    return {
        "format": records.FORMAT,
        "algorithm": cfg.algorithm.name,
        "backbone": network_name(cfg),
        **task_fields(cfg),
        "seed": cfg.seed,
        "recipe": cfg.recipe,
        "protocol": {
            "dataset": dataset_name(cfg),
            "split": cfg.test.split,
            "way": cfg.way,
            "shot": cfg.shot,
            "query": cfg.query,
            "episodes": cfg.test.episodes,
            "episode_seed": cfg.test.seed,
            "rotations": "none" if functions else cfg.dataset.rotations.test,
            "view": source.description if isinstance(source, Functions) else view_words(cfg),
            "setting": run.setting,
            "adaptation_steps": adaptation_steps,
            "train_on_val": cfg.train.train_on_val,
            "selection": trained.selection,
            "manifest": tasks.manifest(0, cfg.test.episodes),
        },
        "validation": validation
        and {**validation, "episodes": cfg.test.validation_episodes, "adaptation_steps": run.learner.test_steps},
        "test": _summary(tasks.metric, scores, adaptation_steps) | {"episodes": cfg.test.episodes},
        "cost": {
            "train_seconds": round(trained.train_seconds, 2),
            "extractor_seconds": source.metadata.get("extractor", {}).get("train_seconds"),
            "nan_guarded_steps": trained.nan_guarded,
            "train_tasks": train_tasks,
            "gradient_evaluations": train_tasks * getattr(run.learner, "gradient_evaluations", 0),
            "tasks_per_second": round(train_tasks / trained.train_seconds, 2) if trained.train_seconds else None,
            "peak_memory_bytes": peak_memory_bytes(run.device),
            "device": records.device_name(run.device),
            "processes": world()[1],
        },
        "code": records.code(),
        "environment": records.environment(),
        "data": {
            "fingerprint": source.image_fingerprint,
            "features_fingerprint": None if cfg.features.name is None else source.fingerprint,
            "train_fingerprint": "+".join(run.sources[split].fingerprint for split in splits),
            "about": dict(source.metadata),
            "view": None if functions else _view(run),
        },
        "config": trained_with(run.config),
        "command": shlex.join(["python", *sys.argv]),
    }, scores


def _scores(run: Experiment, trained: Trained) -> tuple[Scores, Any]:
    """The scores of each tested number of steps, and what the record calls these: a number, a list, or words."""
    cfg, tasks, listed = run.cfg, run.test, isinstance(run.cfg.test.steps, ListConfig)
    scores: Scores = {}
    adaptation_steps: Any = []
    total = len(rank_slice(cfg.test.episodes)) * len(run.test_steps)
    with progress_bar(f"{title(cfg)}: test episodes", total) if is_main() else nullcontext() as advance:
        for count in run.test_steps:
            name = f"{tasks.metric}_{count}" if listed else tasks.metric
            with override_test_steps(run.learner, count):
                if not listed:
                    adaptation_steps = getattr(run.learner, "adaptation_steps", count)
                each = evaluate(
                    run.learner, trained.params, trained.state, tasks, cfg.test.episodes,
                    transductive=cfg.test.transductive, engine=run.engine, advance=advance,
                )  # fmt: skip
            if diverged := int((~np.isfinite(each)).sum()):
                problem = (
                    f"{name} is not finite in {diverged} of {cfg.test.episodes} test episodes: adaptation diverges"
                )
                if len(run.test_steps) == 1:
                    raise FewshotError(f"{problem}; lower algorithm.learner.inner_lr, or test fewer steps")
                if is_main():
                    print(f"warning: {problem}; left out of the record", file=sys.stderr)
                continue
            scores[name] = each
            if listed:
                adaptation_steps.append(count)
    return scores, adaptation_steps


def title(cfg: DictConfig) -> str:
    """A run in a few words, for progress lines."""
    task = {"dataset": cfg.dataset.name, "way": cfg.way, "shot": cfg.shot}
    return f"{cfg.algorithm.name} {records.task_name(task)}"


def protocol_slug(run: Experiment) -> str:
    """The protocol of a test, as the name of its folder."""
    cfg, rotations = run.cfg, run.cfg.dataset.get("rotations")
    words = [
        cfg.test.split,
        f"{cfg.way}w{cfg.shot}s{cfg.query}q",
        *([] if rotations is None else [rotations.test]),
        run.setting,
        f"{'-'.join(map(str, run.test_steps))}steps",
        f"{cfg.test.episodes}e{cfg.test.seed}",
    ]
    return "-".join(words)


def task_fields(cfg: DictConfig) -> dict[str, Any]:
    """Record fields of the task that a run was trained for, and the shots and queries of its training tasks."""
    shot, query = training_shots(cfg)
    test = {"dataset": dataset_name(cfg), "way": cfg.way, "shot": cfg.shot, "query": cfg.query}
    return test | {"train": {"shot": shot, "query": query}}


def _summary(metric: str, scores: Scores, adaptation_steps: Any) -> dict[str, Any]:
    """Mean and interval of the test; by number of adaptation steps if there are several."""
    means = [float(each.mean()) for each in scores.values()]
    intervals = [None if len(each) < 2 else ci95(each) for each in scores.values()]
    if not isinstance(adaptation_steps, list):
        return {metric: means[0], "ci95": intervals[0]}
    counts = [str(count) for count in adaptation_steps]
    return {metric: dict(zip(counts, means, strict=True)), "ci95": dict(zip(counts, intervals, strict=True))}


def _view(run: Experiment) -> dict[str, Any]:
    """How the learner sees the images: the transform, `augment` in training, and the shapes before and after."""
    shape = run.test.source.shape
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


def network_name(cfg: DictConfig) -> str:
    """The name of the backbone, and of the extractor whose features it takes, if any."""
    plain = cfg.backbone.name == "identity"
    if cfg.features.name is None:
        return "pixels" if plain else cfg.backbone.name
    on = f"{cfg.features.name} features"
    return on if plain else f"{cfg.backbone.name} on {on}"
