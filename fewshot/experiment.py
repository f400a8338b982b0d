"""From a configuration to a run: banks, samplers, learner, training, test and record."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.engine import Engine
from fewshot.algorithms.learner import Learner, Tensors
from fewshot.checkpoint import load_checkpoint, only_process_in, write_atomically
from fewshot.config import resolved, trained_with
from fewshot.data.bank import Bank, joined
from fewshot.device import has_room, peak_memory_bytes, pick_device, reset_peak_memory
from fewshot.errors import FewshotError
from fewshot.evaluation import ci95, evaluate
from fewshot.progress import TrainingDisplay
from fewshot.report import record as records
from fewshot.report.record import read_record
from fewshot.run_folder import DATA, began_with, is_finished, run_folder
from fewshot.tasks.sampler import Sampler
from fewshot.tasks.view import View, view_of
from fewshot.training import Trained, TrainSettings, checkpoints, is_trained, selected, train


@dataclass
class Experiment:
    """Everything that a configuration names, built."""

    config: dict[str, Any]
    device: torch.device
    banks: dict[str, Bank]
    view: View  # at validation and test
    learner: Learner
    engine: Engine


LEAST = {
    "way": 2,
    "shot": 1,
    "train.outer_lr": 0,
    "query": 1,
    "train.steps": 0,
    "train.meta_batch": 1,
    "train.validate_every": 0,
    "train.checkpoint_every": 1,
    "train.log_every": 1,
    "test.episodes": 1,
    "test.validation_episodes": 1,
}


def build(cfg: DictConfig, known: Path | None = None) -> Experiment:
    """Read the data and make the learner, initialised from the seed.

    Args:
        known: a run folder; where the run has begun, the data must be what it began with.

    Raises:
        FewshotError: whatever is wrong with the configuration or the data.
    """
    config = resolved(cfg)
    for key, least in LEAST.items():
        if OmegaConf.select(cfg, key) < least:
            raise FewshotError(f"{key}={OmegaConf.select(cfg, key)}: must be at least {least}")
    for key, parts in (("augment", "episodes or extractor"), ("rotations", "train or test")):
        if not isinstance(cfg.dataset[key], DictConfig):
            raise FewshotError(f"dataset.{key}={cfg.dataset[key]}: has parts; set dataset.{key}.{parts}")
    if cfg.features.name is not None and cfg.dataset.augment.episodes != "none":
        raise FewshotError(f"dataset.augment.episodes={cfg.dataset.augment.episodes}: not of features; leave it out")
    device = pick_device(cfg.device)
    banks = read_banks(cfg, known)
    # Features were taken of images as the dataset's view has them.
    view = view_of(config["dataset"]) if cfg.features.name is None else View()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        network = make(cfg.backbone.network, shape=view.seen(next(iter(banks.values())).shape), way=cfg.way)
        learner = make(cfg.algorithm.learner, backbone=network.to(device))
    for name, bank in banks.items():
        banks[name] = bank.to(device, examples=has_room(bank.examples.nbytes, device))
    return Experiment(config, device, banks, view, learner, Engine(cfg.engine, cfg.chunk))


def read_banks(cfg: DictConfig, known: Path | None = None) -> dict[str, Bank]:
    """The images of the dataset, or the features that stand for them.

    Raises:
        FewshotError: whatever is wrong with the data, or not the data that the run in the folder `known` began with.
    """
    theirs = began_with(known) if known is not None else None
    source = cfg.dataset if cfg.features.name is None else cfg.features
    made = {"device": cfg.device, "may_train": theirs is None} if "settings" in source.reader else {}
    banks = make(source.reader, **made)
    for name, bank in banks.items():
        if theirs is not None and theirs.get(name) != bank.fingerprint:
            raise FewshotError(
                f"{known}: this run is on other data (its split {name} differs from what the readers find now); "
                "put that data back, or choose another run_dir"
            )
    return banks


def make(node: DictConfig, **kwargs: Any) -> Any:
    """What a node of the configuration names by its `_target_`.

    Raises:
        FewshotError: it cannot be made, for whatever reason.
    """
    try:
        return instantiate(node, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, FewshotError):
            raise error.__cause__ from None
        cause = error.__cause__ or error
        raise FewshotError(f"{node._target_}: {str(cause).splitlines()[0]}") from error


def training_run(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Train and test what the configuration says, or continue where it stopped; (run folder, record).

    Raises:
        FewshotError: a mistake in configuration, data or folder, or a loss that is not finite.
    """
    folder = run_folder(resolved(cfg))
    if is_finished(folder, cfg) and not cfg.force:
        read_banks(cfg, folder)
        return folder, read_record(folder / "record.json")
    with only_process_in(folder):
        return folder, _train_and_test(folder, cfg)


def _train_and_test(folder: Path, cfg: DictConfig) -> dict[str, Any]:
    run = build(cfg, None if cfg.force else folder)
    reset_peak_memory(run.device)
    settings = TrainSettings(**run.config["train"])
    if cfg.dataset.shape is not None:
        raise FewshotError("dataset.shape: is for tests on another dataset; set dataset.reader.size, or leave it out")
    shot = cfg.shot if settings.shot is None else settings.shot
    query = shot if settings.query is None else settings.query
    training = joined(run.banks["train"], run.banks["val"]) if settings.train_on_val else run.banks["train"]
    changed = replace(run.view, augment=cfg.dataset.augment.episodes)
    train_sampler = Sampler(training, cfg.way, shot, query, cfg.seed, cfg.dataset.rotations.train, changed)
    val_sampler = Sampler(
        run.banks["val"], cfg.way, cfg.shot, cfg.query, cfg.seed, cfg.dataset.rotations.test, run.view
    )
    # What cannot be trained or tested should leave no folder, nor cost the training first.
    is_trained(run.learner, train_sampler)
    tester(run, cfg)
    if cfg.force:
        for path in (folder / "record.json", *checkpoints(folder)):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / "tests", ignore_errors=True)  # they are of the weights that go
    saved = run.config | {"device": str(run.device)}
    data = {name: bank.fingerprint for name, bank in run.banks.items()}
    data |= {"shape": run.view.seen(training.shape), "classes": training.names}
    write_atomically(folder / DATA, (json.dumps(data, indent=1) + "\n").encode())
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(saved)).encode())

    def validate(params: Tensors, carry: Tensors) -> float:
        scores = evaluate(
            run.learner, params, carry, val_sampler, cfg.test.validation_episodes,
            transductive=cfg.test.transductive, engine=run.engine,
        )  # fmt: skip
        return float(scores.mean())

    last, _ = checkpoints(folder)
    start = load_checkpoint(last, "cpu")[1]["step"] if last.exists() else 0
    title = f"{cfg.algorithm.name} {cfg.dataset.name} {cfg.way}-way {cfg.shot}-shot"
    with TrainingDisplay(folder, title, settings.steps, start, settings.meta_batch, settings.log_every) as display:
        train(run.learner, train_sampler, settings, run.engine, folder, validate, display.update)
    record, scores = tested(run, cfg, selected(run.learner, settings, folder, run.device))
    records.write_record(folder, record, scores)
    return record


def tester(run: Experiment, cfg: DictConfig) -> Sampler:
    """The sampler of the test episodes."""
    if cfg.test.split not in run.banks:
        raise FewshotError(f"test.split={cfg.test.split}: there are {', '.join(run.banks)}")
    bank = run.banks[cfg.test.split]
    return Sampler(bank, cfg.way, cfg.shot, cfg.query, cfg.test.seed, cfg.dataset.rotations.test, run.view)


def tested(run: Experiment, cfg: DictConfig, trained: Trained) -> tuple[dict[str, Any], np.ndarray]:
    """Test on fixed episodes; (record, score of each episode)."""
    sampler, settings = tester(run, cfg), cfg.train
    scores = evaluate(
        run.learner, trained.params, trained.carry, sampler, cfg.test.episodes,
        transductive=cfg.test.transductive, engine=run.engine,
    )  # fmt: skip
    tasks = trained.steps * settings.meta_batch
    trained_on = ("train", "val") if settings.train_on_val else ("train",)
    validation = trained.validation
    return {
        "format": records.FORMAT,
        "algorithm": cfg.algorithm.name,
        "backbone": network_name(cfg),
        "dataset": dataset_name(cfg),
        "way": cfg.way,
        "shot": cfg.shot,
        "query": cfg.query,
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
            "rotations": cfg.dataset.rotations.test,
            "view": view_words(cfg),
            "regime": regime(run.learner, cfg),
            "adaptation_steps": getattr(run.learner, "adaptation_steps", run.learner.test_steps),
            "train_on_val": settings.train_on_val,
            "selection": trained.selection,
            "manifest": sampler.manifest(0, cfg.test.episodes),
        },
        "validation": None if validation is None else validation | {"episodes": cfg.test.validation_episodes},
        "test": {
            "accuracy": float(scores.mean()),
            "ci95": None if len(scores) < 2 else ci95(scores),
            "episodes": len(scores),
        },
        "cost": {
            "train_seconds": round(trained.train_seconds, 2),
            "extractor_seconds": sampler.bank.about.get("extractor", {}).get("train_seconds"),
            "nan_guarded_steps": trained.nan_guarded,
            "train_tasks": tasks,
            "tasks_per_second": round(tasks / trained.train_seconds, 2) if trained.train_seconds else None,
            "peak_memory_bytes": peak_memory_bytes(run.device),
            "device": records.device_name(run.device),
        },
        "code": records.code(),
        "environment": records.environment(),
        "data": {
            "fingerprint": sampler.bank.drawn_from,
            "features_fingerprint": None if cfg.features.name is None else sampler.bank.fingerprint,
            "train_fingerprint": "+".join(run.banks[split].fingerprint for split in trained_on),
            "about": dict(sampler.bank.about),
            "view": asdict(run.view)
            | {"augment": cfg.dataset.augment.episodes}  # in training
            | {"from": sampler.bank.shape, "to": run.view.seen(sampler.bank.shape)},
        },
        "config": trained_with(run.config),
        "command": shlex.join(["python", *sys.argv]),
    }, scores


def regime(learner: Learner, cfg: DictConfig) -> str:
    """Whether queries can see each other at test."""
    return "transductive" if cfg.test.transductive and not learner.independent else "inductive"


def dataset_name(cfg: DictConfig) -> str:
    """The dataset's name; a part of a published one is not that one."""
    part = cfg.features.name != "published" and cfg.dataset.reader.get("complete", True) is False
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
