"""The test of trained parameters on fixed episodes, and the record that it leaves."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from fewshot.algorithms.learner import Learner, override_test_steps
from fewshot.core.checks import check_number
from fewshot.core.device import peak_memory_bytes
from fewshot.core.distributed import is_main, world
from fewshot.core.errors import FewshotError
from fewshot.engine.evaluate import ci95, evaluate
from fewshot.episodes import Tasks
from fewshot.experiment.build import Experiment, tasks_of
from fewshot.experiment.config import trained_with
from fewshot.report import records
from fewshot.tasks.functions import Functions
from fewshot.training.loop import Trained

Scores = dict[str, np.ndarray]  # heading in episodes.csv to [episodes]


def make_record(run: Experiment, cfg: DictConfig, trained: Trained) -> tuple[dict[str, Any], Scores]:
    """Test on fixed episodes; (record, score of each episode).

    Raises:
        FewshotError: `test.steps` is neither a number of adaptation steps nor several, or a score is not finite.
    """
    tasks, settings = tasks_of(run, cfg, cfg.test.split, cfg.test.seed), cfg.train
    adaptation_steps: int | str = 0
    steps, several = steps_of(cfg, run.learner), isinstance(cfg.test.steps, ListConfig)
    scores: Scores = {}
    for count in steps:
        with override_test_steps(run.learner, count):
            adaptation_steps = getattr(run.learner, "adaptation_steps", count)
            scores[f"{tasks.metric}_{count}" if several else tasks.metric] = evaluate(
                run.learner, trained.params, trained.state, tasks, cfg.test.episodes,
                transductive=cfg.test.transductive, engine=run.engine,
            )  # fmt: skip
    for count, heading in zip(list(steps), list(scores), strict=True):
        if diverged := int((~np.isfinite(scores[heading])).sum()):
            said = f"{heading} is not finite in {diverged} of {cfg.test.episodes} test episodes: adaptation diverges"
            if len(steps) == 1:
                raise FewshotError(f"{said}; lower algorithm.learner.inner_lr, or test fewer steps")
            if is_main():
                print(f"warning: {said}; left out of the record", file=sys.stderr)
            steps.remove(count)
            del scores[heading]
    train_tasks = trained.steps * settings.meta_batch
    trained_on = ("train", "val") if settings.train_on_val else ("train",)
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
            "rotations": "none" if isinstance(tasks.source, Functions) else cfg.dataset.rotations.test,
            "view": tasks.source.words if isinstance(tasks.source, Functions) else view_words(cfg),
            "setting": setting(run, cfg),
            "adaptation_steps": steps if several else adaptation_steps,
            "train_on_val": settings.train_on_val,
            "selection": trained.selection,
            "manifest": tasks.manifest(0, cfg.test.episodes),
        },
        "validation": None
        if validation is None
        else validation | {"episodes": cfg.test.validation_episodes, "adaptation_steps": run.learner.test_steps},
        "test": _summed_up(tasks.metric, scores, steps if several else []) | {"episodes": cfg.test.episodes},
        "cost": {
            "train_seconds": round(trained.train_seconds, 2),
            "extractor_seconds": tasks.source.metadata.get("extractor", {}).get("train_seconds"),
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
            "fingerprint": tasks.source.image_fingerprint,
            "features_fingerprint": None if cfg.features.name is None else tasks.source.fingerprint,
            "train_fingerprint": "+".join(run.sources[split].fingerprint for split in trained_on),
            "about": dict(tasks.source.metadata),
            "view": None if isinstance(tasks.source, Functions) else _view(run, cfg, tasks),
        },
        "config": trained_with(run.config),
        "command": shlex.join(["python", *sys.argv]),
    }, scores


def steps_of(cfg: DictConfig, learner: Learner) -> list[int]:
    """The numbers of adaptation steps of a test: several where `test.steps` is a list.

    Raises:
        FewshotError: `test.steps` is neither a number of steps nor several, or the learner knows no such number.
    """
    given = cfg.test.steps
    several = list(given) if isinstance(given, ListConfig) else [learner.test_steps if given is None else given]
    for count in several:
        check_number("test.steps", count, int, 0)
    if not several or len(set(several)) < len(several):
        raise FewshotError(f"test.steps={given}: name numbers of adaptation steps, each once, such as [1,5,10]")
    if isinstance(given, ListConfig) and (hasattr(learner, "adaptation_steps") or not learner.init()[0]):
        raise FewshotError(
            f"test.steps={given}: {cfg.algorithm.name} has no one inner loop to count the steps of; null"
        )
    return sorted(several)


def protocol_slug(cfg: DictConfig, run: Experiment) -> str:
    """The protocol of a test, to name its folder by."""
    test, data = cfg.test, cfg.dataset
    words = [
        test.split,
        f"{cfg.way}w{cfg.shot}s{cfg.query}q",
        *([data.rotations.test] if "rotations" in data else []),
        setting(run, cfg),
        f"{'-'.join(map(str, steps_of(cfg, run.learner)))}steps",
        f"{test.episodes}e{test.seed}",
    ]
    return "-".join(words)


def task_fields(cfg: DictConfig) -> dict[str, Any]:
    """What a run's learner is for, and the shots and queries of the tasks that it trains on."""
    shot = cfg.shot if cfg.train.shot is None else cfg.train.shot
    train = {"shot": shot, "query": shot if cfg.train.query is None else cfg.train.query}
    test = {"dataset": dataset_name(cfg), "way": cfg.way, "shot": cfg.shot, "query": cfg.query}
    return test | {"train": train}


def _summed_up(metric: str, scores: Scores, steps: list[int]) -> dict[str, Any]:
    """Mean and interval of each test, by its number of adaptation steps where there are several."""
    means = [float(each.mean()) for each in scores.values()]
    halves = [None if len(each) < 2 else ci95(each) for each in scores.values()]
    if not steps:
        return {metric: means[0], "ci95": halves[0]}
    names = [str(count) for count in steps]
    return {metric: dict(zip(names, means, strict=True)), "ci95": dict(zip(names, halves, strict=True))}


def _view(run: Experiment, cfg: DictConfig, tasks: Tasks) -> dict[str, Any]:
    """What was seen of the images, `augment` in training."""
    shapes = {"from": tasks.source.shape, "to": run.view.output_shape(tasks.source.shape)}
    return asdict(run.view) | {"augment": cfg.dataset.augment.episodes} | shapes


def setting(run: Experiment, cfg: DictConfig) -> str:
    """Whether queries can see each other at test."""
    alone = run.behaviour.queries_independent
    return "transductive" if cfg.test.transductive and not alone else "inductive"


def dataset_name(cfg: DictConfig) -> str:
    """The dataset's name; a part of a published one is not that one."""
    part = cfg.features.name != "published" and cfg.dataset.reader.get("allow_partial", False)
    return f"{cfg.dataset.name} (part)" if part else cfg.dataset.name


def view_words(cfg: DictConfig) -> str:
    """What of the images is seen at test."""
    crop, shape = cfg.dataset.crop, cfg.dataset.shape
    words = [f"crop {crop}"] * (crop is not None) + [f"seen as {'x'.join(map(str, shape or ()))}"] * (shape is not None)
    return ", ".join(words) or "whole images"


def network_name(cfg: DictConfig) -> str:
    """The backbone, and the extractor whose features it stands on."""
    plain = cfg.backbone.name in ("features", "pixels")
    if cfg.features.name is None:
        return "pixels" if plain else cfg.backbone.name
    on = f"{cfg.features.name} features"
    return on if plain else f"{cfg.backbone.name} on {on}"
