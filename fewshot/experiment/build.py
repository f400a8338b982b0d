"""From a configuration to what it names: data, learner, engine, and the tasks that they meet on."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fewshot.algorithms.learner import Learner
from fewshot.core.device import fits_on_device, pick_device, set_single_threaded, tune_malloc
from fewshot.core.distributed import is_main
from fewshot.core.errors import FewshotError, one_line
from fewshot.data.bank import Bank, concat_banks
from fewshot.engine.engine import Engine, is_small
from fewshot.engine.probe import Behaviour, probe
from fewshot.episodes import Episodes, Tasks
from fewshot.experiment.config import is_regression, resolved
from fewshot.experiment.run_dir import load_data_info
from fewshot.tasks.functions import Functions
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.tasks.transforms import ImageTransform, view_of


@dataclass
class Experiment:
    """Everything that a configuration names, built."""

    config: dict[str, Any]
    device: torch.device
    sources: dict[str, Bank] | dict[str, Functions]  # by split
    view: ImageTransform  # of images, at validation and test
    learner: Learner
    engine: Engine
    task: Episodes = field(init=False)  # one of the test's

    @property
    def behaviour(self) -> Behaviour:
        """Of the learner on tasks of the test, as it is known by now."""
        return probe(self.learner, self.task)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example as the learner sees it."""
        return self.view.output_shape(self.sources["train"].shape)


MINIMUMS = {
    "way": 1,
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


def build(cfg: DictConfig, known: Path | None = None, made_for: int | None = None) -> Experiment:
    """Read the data and make the learner, initialised from the seed; its behaviour is found out on a test task.

    Args:
        known: a run folder; where the run has begun, the data must be what it began with.
        made_for: ways that the network is made for, where the test has others.

    Raises:
        FewshotError: whatever is wrong with the configuration or the data, or a network that does not fit the tasks.
    """
    no_images = check_dataset(cfg)
    config = resolved(cfg)
    for key, least in MINIMUMS.items():
        if not OmegaConf.select(cfg, key) >= least:  # nor nan
            raise FewshotError(f"{key}={OmegaConf.select(cfg, key)}: must be at least {least}")
    device = pick_device(cfg.device)
    set_single_threaded(no_images)
    sources = read_sources(cfg, known)
    # Features were taken of images as the dataset's view has them.
    view = ImageTransform() if no_images or cfg.features.name is not None else view_of(config["dataset"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        shape = view.output_shape(sources["train"].shape)
        network = make_network(cfg.backbone.network, shape, made_for or cfg.way)
        learner = instantiate_node(cfg.algorithm.learner, backbone=network.to(device))
    placed = {
        name: source.to(device, examples=fits_on_device(source.examples.nbytes, device))
        if isinstance(source, Bank)
        else source.to(device)
        for name, source in sources.items()
    }
    if not is_small(prod(shape)):
        tune_malloc(one_arena=True)  # before the engine's threads have heaps of their own
    run = Experiment(config, device, placed, view, learner, Engine(cfg.engine, cfg.task_chunk))
    first = tasks_of(run, cfg, cfg.test.split, cfg.test.seed).episodes(0, 2)
    run.task = first[0]
    notes = list(run.behaviour.notes)
    run.engine.method(first, learner)
    if run.engine.fallback:
        notes.append(f"engine=auto takes loop: {run.engine.fallback}")
    for note in notes:
        print_note(note)
    return run


@cache
def print_note(note: str) -> None:
    """Tell a person something, once in a process, and in process 0 alone."""
    if is_main():
        print(f"note: {note}", file=sys.stderr)


def make_network(node: DictConfig, shape: tuple[int, ...], way: int) -> nn.Module:
    """The network that a node names, told the shape of one example and the number of ways if it has such arguments.

    Raises:
        FewshotError: it cannot be made, or is no nn.Module.
    """
    module, _, name = str(node._target_).rpartition(".")
    try:
        wanted = inspect.signature(getattr(import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise FewshotError(
            f"backbone.network._target_={node._target_}: {one_line(error)}; name what can be imported"
        ) from error
    given = {name: value for name, value in (("shape", shape), ("way", way)) if name in wanted}
    network = instantiate_node(node, **given)
    if not isinstance(network, nn.Module):
        raise FewshotError(
            f"backbone.network._target_={node._target_}: makes a {type(network).__name__}, and an nn.Module is wanted"
        )
    return network


def check_dataset(cfg: DictConfig) -> bool:
    """Whether the dataset is of functions and not of images.

    Raises:
        FewshotError: something is set that is not for such a dataset.
    """
    if is_regression(cfg.dataset):
        if cfg.way != 1:
            raise FewshotError(f"way={cfg.way}: a function of {cfg.dataset.name} has one output; leave way out")
        if cfg.features.name is not None or cfg.train.train_on_val:
            key = "train.train_on_val" if cfg.train.train_on_val else "features"
            raise FewshotError(f"{key}: not for functions, as in dataset={cfg.dataset.name}; leave it out")
        return True
    for key, parts in (("augment", "episodes or extractor"), ("rotations", "train or test")):
        if not isinstance(cfg.dataset[key], DictConfig):
            raise FewshotError(f"dataset.{key}={cfg.dataset[key]}: has parts; set dataset.{key}.{parts}")
    if cfg.features.name is not None and cfg.dataset.augment.episodes != "none":
        raise FewshotError(f"dataset.augment.episodes={cfg.dataset.augment.episodes}: not of features; leave it out")
    return False


def tasks_of(run: Experiment, cfg: DictConfig, split: str, seed: int) -> Tasks:
    """The tasks of a split by which a learner is validated and tested.

    Raises:
        FewshotError: there is no such split, or it cannot give such tasks.
    """
    if split not in run.sources:
        raise FewshotError(f"test.split={split}: there are {', '.join(run.sources)}")
    source = run.sources[split]
    if isinstance(source, Functions):
        return Regression(source, cfg.shot, cfg.query, seed)
    return Sampler(source, cfg.way, cfg.shot, cfg.query, seed, cfg.dataset.rotations.test, run.view)


def training_tasks(run: Experiment, cfg: DictConfig) -> Tasks:
    """The tasks that a learner is trained on: `train` may say other shots and queries than the test has.

    Raises:
        FewshotError: the training classes cannot give such tasks.
    """
    shot = cfg.shot if cfg.train.shot is None else cfg.train.shot
    query = shot if cfg.train.query is None else cfg.train.query
    source = run.sources["train"]
    if isinstance(source, Functions):
        return Regression(source, shot, query, cfg.seed)
    if cfg.dataset.shape is not None:
        raise FewshotError("dataset.shape: is for tests on another dataset; set dataset.reader.size, or leave it out")
    if cfg.train.train_on_val:
        validation = run.sources["val"]
        assert isinstance(validation, Bank)
        source = concat_banks(source, validation)
    changed = replace(run.view, augment=cfg.dataset.augment.episodes)
    return Sampler(source, cfg.way, shot, query, cfg.seed, cfg.dataset.rotations.train, changed)


def read_sources(cfg: DictConfig, known: Path | None = None) -> dict[str, Any]:
    """The images of the dataset, the features that stand for them, or the functions: a Bank or Functions by split.

    Raises:
        FewshotError: whatever is wrong with the data, or not the data that the run in the folder `known` began with.
    """
    theirs = load_data_info(known) if known is not None else None
    node = cfg.dataset if cfg.features.name is None else cfg.features
    made = {"device": cfg.device, "may_train": theirs is None} if "settings" in node.reader else {}
    sources = instantiate_node(node.reader, **made)
    for name, found in sources.items():
        if theirs is not None and theirs.get(name) != found.fingerprint:
            raise FewshotError(
                f"{known}: this run is on other data (its split {name} differs from what the readers find now); "
                "put that data back, or set dataset.name=<a name for these images> to make a run of its own"
            )
    return sources


def instantiate_node(node: DictConfig, **kwargs: Any) -> Any:
    """What a node of the configuration names by its `_target_`.

    Raises:
        FewshotError: it cannot be made, for whatever reason.
    """
    try:
        return instantiate(node, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, FewshotError):
            raise error.__cause__ from error.__cause__.__cause__
        cause = error.__cause__ or error
        raise FewshotError(f"{node._target_}: {str(cause).splitlines()[0]}") from error
