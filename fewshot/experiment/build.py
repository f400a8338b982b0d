"""From a configuration to what it names: the data, the learner, the engine, and the tasks of each split."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from fewshot.algorithms.learner import Learner
from fewshot.core.checks import check_number
from fewshot.core.device import fits_on_device, pick_device, set_single_threaded, tune_malloc
from fewshot.core.distributed import is_rank_zero
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
from fewshot.training.settings import TrainSettings

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


@dataclass
class Experiment:
    """Everything that a configuration names, built."""

    cfg: DictConfig
    config: dict[str, Any]  # the same, as plain values
    device: torch.device
    sources: dict[str, Bank] | dict[str, Functions]  # by split
    view: ImageTransform  # of images, in validation and test
    learner: Learner
    engine: Engine

    @property
    def settings(self) -> TrainSettings:
        """How to train."""
        return TrainSettings(**self.config["train"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, as the learner sees it."""
        return self.view.output_shape(self.sources["train"].shape)

    @cached_property
    def training(self) -> Tasks:
        """The tasks of the training, whose shots and queries `train` may set apart from those of the test.

        Raises:
            FewshotError: the training classes cannot give such tasks.
        """
        cfg, source = self.cfg, self.sources["train"]
        shot, query = training_shots(cfg)
        if isinstance(source, Functions):
            return Regression(source, shot, query, cfg.seed)
        if cfg.dataset.shape is not None:
            raise FewshotError(
                "dataset.shape: is for tests on another dataset; set dataset.reader.size, or leave it out"
            )
        if cfg.train.train_on_val:
            validation = self.sources["val"]
            assert isinstance(validation, Bank)
            source = concat_banks(source, validation)
        view = replace(self.view, augment=cfg.dataset.augment.episodes)
        return Sampler(source, cfg.way, shot, query, cfg.seed, cfg.dataset.rotations.train, view)

    @cached_property
    def validation(self) -> Tasks:
        """The tasks of the validation, which selects the parameters. Raises FewshotError as `test` does."""
        return self._tasks("val", self.cfg.seed)

    @cached_property
    def test(self) -> Tasks:
        """The tasks of the test.

        Raises:
            FewshotError: there is no such split, or its classes cannot give such tasks.
        """
        return self._tasks(self.cfg.test.split, self.cfg.test.seed)

    def _tasks(self, split: str, seed: int) -> Tasks:
        if split not in self.sources:
            raise FewshotError(f"test.split={split}: there are {', '.join(self.sources)}")
        cfg, source = self.cfg, self.sources[split]
        if isinstance(source, Functions):
            return Regression(source, cfg.shot, cfg.query, seed)
        return Sampler(source, cfg.way, cfg.shot, cfg.query, seed, cfg.dataset.rotations.test, self.view)

    @cached_property
    def first_task(self) -> Episodes:
        """The first test task, on which the learner is probed."""
        return self.test.episodes(0, 1)[0]

    @property
    def behaviour(self) -> Behaviour:
        """What the probe has found out about the learner so far."""
        return probe(self.learner, self.first_task)

    @property
    def setting(self) -> str:
        """`transductive` if the queries of a test can see each other, else `inductive`."""
        return "transductive" if self.cfg.test.transductive and not self.behaviour.queries_independent else "inductive"

    @cached_property
    def test_steps(self) -> list[int]:
        """The numbers of adaptation steps to test: several where `test.steps` is a list.

        Raises:
            FewshotError: `test.steps` is not a number or a list of numbers, or the learner has no such number.
        """
        given, learner = self.cfg.test.steps, self.learner
        steps = list(given) if isinstance(given, ListConfig) else [learner.test_steps if given is None else given]
        for count in steps:
            check_number("test.steps", count, int, 0)
        if not steps or len(set(steps)) < len(steps):
            raise FewshotError(f"test.steps={given}: name numbers of adaptation steps, each once, such as [1,5,10]")
        if isinstance(given, ListConfig) and (hasattr(learner, "adaptation_steps") or not learner.init()[0]):
            name = self.cfg.algorithm.name
            raise FewshotError(f"test.steps={given}: {name} has no single inner loop with steps to count; set null")
        return sorted(steps)


def build(cfg: DictConfig, run_dir: Path | None = None, ways: int | None = None) -> Experiment:
    """Read the data, and make the learner with the initialisation of the seed. A test task probes the learner.

    Args:
        run_dir: a run folder. If that run has begun, the data must be the data that it began with.
        ways: the number of ways that the network was made for; None: `way`.

    Raises:
        FewshotError: a mistake in the configuration or the data, or a network that does not fit the tasks.
    """
    check_config(cfg)
    functions = is_regression(cfg.dataset)
    device = pick_device(cfg.device)
    set_single_threaded(functions)
    sources = read_sources(cfg, run_dir)
    # Features were extracted from images that the view had changed already.
    view = ImageTransform() if functions or cfg.features.name is not None else view_of(resolved(cfg.dataset))
    shape = view.output_shape(sources["train"].shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        network = make_network(cfg.backbone.network, shape, ways or cfg.way)
        learner = instantiate_node(cfg.algorithm.learner, backbone=network.to(device))
    if not is_small(prod(shape)):
        tune_malloc(one_arena=True)  # before the threads of the engine have heaps of their own
    sources = {split: _move(source, device) for split, source in sources.items()}
    run = Experiment(cfg, resolved(cfg), device, sources, view, learner, Engine(cfg.engine, cfg.task_chunk))
    notes = list(run.behaviour.notes)
    run.engine.method(run.test.episodes(0, 2), learner)
    if run.engine.fallback:
        notes.append(f"engine=auto takes loop: {run.engine.fallback}")
    for note in notes:
        print_note(note)
    return run


def check_config(cfg: DictConfig) -> None:
    """Check what can be checked before any data is read.

    Raises:
        FewshotError: a number is too small, or a setting does not go with the kind of dataset.
    """
    for key, least in MINIMUMS.items():
        if not OmegaConf.select(cfg, key) >= least:  # also refuses nan
            raise FewshotError(f"{key}={OmegaConf.select(cfg, key)}: must be at least {least}")
    if is_regression(cfg.dataset):
        if cfg.way != 1:
            raise FewshotError(f"way={cfg.way}: a function of {cfg.dataset.name} has one output; leave way out")
        if cfg.features.name is not None or cfg.train.train_on_val:
            key = "train.train_on_val" if cfg.train.train_on_val else "features"
            raise FewshotError(f"{key}: not for functions, as in dataset={cfg.dataset.name}; leave it out")
        return
    for key, parts in (("augment", "episodes or extractor"), ("rotations", "train or test")):
        if not isinstance(cfg.dataset[key], DictConfig):
            raise FewshotError(f"dataset.{key}={cfg.dataset[key]}: has parts; set dataset.{key}.{parts}")
    if cfg.features.name is not None and cfg.dataset.augment.episodes != "none":
        raise FewshotError(f"dataset.augment.episodes={cfg.dataset.augment.episodes}: not of features; leave it out")


def training_shots(cfg: DictConfig) -> tuple[int, int]:
    """(K, Q) of the training tasks: K is that of the test and Q is K, unless `train` says otherwise."""
    shot = cfg.shot if cfg.train.shot is None else cfg.train.shot
    return shot, shot if cfg.train.query is None else cfg.train.query


def read_sources(cfg: DictConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """A Bank of images or features by split, or Functions by split.

    Raises:
        FewshotError: something is wrong with the data, or it is not the data that the run in `run_dir` began with.
    """
    began_with = load_data_info(run_dir) if run_dir is not None else None
    node = cfg.dataset if cfg.features.name is None else cfg.features
    extractor = {"device": cfg.device, "may_train": began_with is None} if "settings" in node.reader else {}
    sources = instantiate_node(node.reader, **extractor)
    for split, source in sources.items():
        if began_with is not None and began_with.get(split) != source.fingerprint:
            raise FewshotError(
                f"{run_dir}: this run is on other data (its split {split} differs from what the readers find now); "
                "put that data back, or set dataset.name=<a name for these images> to make a run of its own"
            )
    return sources


def _move(source: Any, device: torch.device) -> Any:
    """A source on the device; the examples of a bank only if they fit."""
    if isinstance(source, Bank):
        return source.to(device, examples=fits_on_device(source.examples.nbytes, device))
    return source.to(device)


def make_network(node: DictConfig, shape: tuple[int, ...], way: int) -> nn.Module:
    """The network of a configuration node. It gets `shape`, of one example, and `way` if it has such arguments.

    Raises:
        FewshotError: it cannot be made, or is no nn.Module.
    """
    module, _, name = str(node._target_).rpartition(".")
    try:
        accepted = inspect.signature(getattr(import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise FewshotError(
            f"backbone.network._target_={node._target_}: {one_line(error)}; name what can be imported"
        ) from error
    network = instantiate_node(node, **{k: v for k, v in {"shape": shape, "way": way}.items() if k in accepted})
    if not isinstance(network, nn.Module):
        raise FewshotError(
            f"backbone.network._target_={node._target_}: makes a {type(network).__name__}, and an nn.Module is wanted"
        )
    return network


def instantiate_node(node: DictConfig, **kwargs: Any) -> Any:
    """What a configuration node names by its `_target_`, made with the values of the node and `kwargs`.

    Raises:
        FewshotError: it cannot be made, for whatever reason.
    """
    try:
        return instantiate(node, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, FewshotError):
            raise error.__cause__ from error.__cause__.__cause__
        first, *more = str(error.__cause__ or error).splitlines()
        reason = f"{first} {more[0]}" if first.endswith(":") and more else first  # of an import, the cause comes second
        remedy = "; put the folder of your module on PYTHONPATH" if "No module named" in reason else ""
        raise FewshotError(f"{node._target_}: {reason}{remedy}") from error


@cache
def print_note(note: str) -> None:
    """Print a note on stderr, once in a process, and on rank 0 alone."""
    if is_rank_zero():  # inside `main_first` every rank is a main process of its own
        print(f"note: {note}", file=sys.stderr)
