"""From a configuration to what it names: the data, the learner, the engine, and the tasks of each split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.learner import Learner
from fewshot.backbones.checks import WayError
from fewshot.backbones.weights import find_weights, hash_file
from fewshot.core.checks import check_choice, check_number
from fewshot.core.device import fits_on_device, pick_device, set_single_threaded, tune_malloc
from fewshot.core.errors import FewshotError, TaskSizeError
from fewshot.core.progress import print_note
from fewshot.core.random import stream
from fewshot.data.bank import Bank, concat_banks
from fewshot.engine.engine import Engine, check_precision, is_small
from fewshot.engine.probe import Behaviour, probe
from fewshot.episodes import Episodes, Tasks
from fewshot.experiment.config import given_overrides, is_on_features, is_regression, resolved, starts_from_extractor
from fewshot.experiment.make_learner import check_takes_features, check_types, instantiate_node, make_learner
from fewshot.experiment.protocol import Protocol, read_protocols
from fewshot.experiment.run_dir import EXTRACTOR, TESTS, WEIGHTS, load_data_info
from fewshot.report.records import read_record
from fewshot.tasks.regression import PointSource, Regression
from fewshot.tasks.sampler import LOWER, Sampler
from fewshot.tasks.transforms import ImageTransform, view_of
from fewshot.training.settings import TrainSettings, check_new_rate, check_train_settings

POSITIVE = ("way", "shot", "validation.query", "validation.episodes")


@dataclass
class Experiment:
    """Everything that a configuration names, built."""

    cfg: DictConfig
    config: dict[str, Any]  # the same, as plain values
    device: torch.device
    sources: dict[str, Bank] | dict[str, PointSource]  # by split
    view: ImageTransform  # of images, in validation and test
    learner: Learner
    engine: Engine
    start: dict[str, Any] = field(default_factory=dict)  # what is known of the extractor that the network began with

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
        """The tasks of the training, whose ways, shots and queries `train` may set apart from those of the test.

        Raises:
            FewshotError: the training classes cannot give such tasks.
        """
        cfg, source = self.cfg, self.sources["train"]
        way, shot, query = training_shape(cfg)
        if not isinstance(source, Bank):
            return Regression(source, shot, query, cfg.seed)
        if cfg.dataset.shape is not None:
            raise FewshotError("dataset.shape: is for tests on another dataset; set dataset.reader.size in its place")
        if cfg.train.train_on_val:
            validation = self.sources["val"]
            assert isinstance(validation, Bank)
            source = concat_banks(source, validation)
        view = replace(self.view, augment=cfg.dataset.augment.episodes)
        try:
            return Sampler(source, way, shot, query, cfg.seed, cfg.dataset.rotations, view)
        except TaskSizeError as error:
            name = "" if cfg.train.way is None else f"train.way={way}: "
            text = str(error).replace(LOWER, "lower shot, or train.shot and train.query")
            raise TaskSizeError(f"{name}{text}") from error

    @cached_property
    def validation(self) -> Tasks:
        """The tasks of the validation, which selects the parameters. Raises FewshotError as `protocol_tasks`."""
        rotations = "none" if is_regression(self.cfg.dataset) else self.cfg.dataset.rotations
        return self._tasks("validation", "val", self.cfg.validation.query, self.cfg.seed, rotations)

    @cached_property
    def protocols(self) -> list[Protocol]:
        """How to test."""
        return read_protocols(self.cfg)

    def protocol_tasks(self, protocol: Protocol) -> Tasks:
        """The tasks of a protocol.

        Raises:
            FewshotError: there is no such split, or its classes cannot give such tasks.
        """
        if is_regression(self.cfg.dataset) and protocol.rotations != "none":
            raise FewshotError(f"{protocol.key}.rotations={protocol.rotations}: are of images; set none")
        seed = protocol.episode_seed
        if protocol.split != "test":  # or its first tasks would be those of the training or of the validation
            seed = stream("test", seed)
        return self._tasks(protocol.key, protocol.split, protocol.query, seed, protocol.rotations)

    def _tasks(self, name: str, split: str, query: int, seed: int, rotations: str) -> Tasks:
        if split not in self.sources:
            raise FewshotError(f"{name}.split={split}: there are {', '.join(self.sources)}")
        cfg, source = self.cfg, self.sources[split]
        try:
            if not isinstance(source, Bank):
                return Regression(source, cfg.shot, query, seed)
            return Sampler(source, cfg.way, cfg.shot, query, seed, rotations, self.view)
        except TaskSizeError as error:
            text = str(error).replace(LOWER, f"lower shot or {name}.query")
            raise TaskSizeError(f"{name}: {text}") from error
        except FewshotError as error:
            raise FewshotError(f"{name}: {error}") from error

    @cached_property
    def first_tasks(self) -> Tasks:
        """The tasks of the first test, on which the learner is probed."""
        return self.protocol_tasks(self.protocols[0])

    @property
    def behaviour(self) -> Behaviour:
        """What the probe has found out about the learner so far."""
        return probe(self.learner, self.first_task)

    @cached_property
    def first_task(self) -> Episodes:
        """The first task of the first test."""
        return self.first_tasks.episodes(0, 1)[0]


def build(
    cfg: DictConfig, run_dir: Path | None = None, ways: int | None = None, *, other_data: bool = False
) -> Experiment:
    """Read the data, and make the learner with the initialisation of the seed. A test episode probes the learner.

    Args:
        run_dir: a run folder. If that run has begun, the data must be the data that it began with.
        ways: the number of ways that the network was made for; None: `way`.
        other_data: the configuration has data that are not the run's, for a test of it.

    Raises:
        FewshotError: a mistake in the configuration or the data, or a network that does not fit the tasks.
    """
    check_config(cfg)
    regression = is_regression(cfg.dataset)
    device = pick_device(cfg.device)
    set_single_threaded(regression)
    sources = read_sources(cfg, None if other_data else run_dir)
    # Features were extracted from images that the view had changed already.
    view = ImageTransform() if regression or is_on_features(cfg) else view_of(resolved(cfg.dataset))
    shape = view.output_shape(sources["train"].shape)
    width = len(sources["train"].outputs) if regression else ways or cfg.way
    learner = make_learner(cfg, shape, width, device)
    if not is_small(shape):
        tune_malloc(one_arena=True)  # before the threads of the engine have heaps of their own
    sources = {split: _move(source, device) for split, source in sources.items()}
    engine = Engine(cfg.engine, cfg.task_chunk, cfg.train.steps)
    began_with = load_data_info(run_dir) if run_dir is not None and starts_from_extractor(cfg) else None
    start = (began_with or {}).get(EXTRACTOR, {})
    run = Experiment(cfg, resolved(cfg), device, sources, view, learner, engine, start)
    try:
        notes = list(run.behaviour.notes)
    except WayError as error:
        if ways in (None, cfg.way):
            raise
        raise FewshotError(
            f"way={cfg.way}: the learner was trained for {ways} classes and takes no other number; leave way out, or "
            "train with this way"
        ) from error
    for note in notes:
        print_note(note)
    run.engine.method(run.first_tasks.episodes(0, 2), learner)  # which may say what it takes
    return run


def check_config(cfg: DictConfig) -> None:
    """Check what can be checked before any data is read.

    Raises:
        FewshotError: a value is out of range or of another type, or does not go with the kind of dataset.
    """
    for key in POSITIVE:
        check_number(key, OmegaConf.select(cfg, key), int, 1)
    check_train_settings(TrainSettings(**resolved(cfg)["train"]))
    Engine(cfg.engine, cfg.task_chunk)  # which checks both
    check_precision(cfg.engine, cfg.train.precision)
    check_types(cfg.algorithm.learner)
    read_protocols(cfg)
    check_choice("features.role", cfg.features.get("role", "input"), ("input", "start"))
    if starts_from_extractor(cfg) and "settings" not in cfg.features.get("reader", {}):
        raise FewshotError(
            "features.role=start: needs an extractor that this program trains; choose features=conv4, resnet12 or "
            "wrn28_10"
        )
    if is_regression(cfg.dataset):
        if cfg.way != 1:
            raise FewshotError(f"way={cfg.way}: {cfg.dataset.name} is a regression, without classes; leave way out")
        if cfg.train.way is not None:
            raise FewshotError(f"train.way={cfg.train.way}: functions have no ways; leave it out")
        if cfg.train.train_on_val:
            raise FewshotError(f"train.train_on_val: not for a regression, such as {cfg.dataset.name}; leave it out")
        return
    if not isinstance(cfg.dataset.augment, DictConfig):
        raise FewshotError(f"dataset.augment={cfg.dataset.augment}: has parts; set dataset.augment.episodes")
    if is_on_features(cfg) and cfg.dataset.augment.episodes != "none":
        raise FewshotError(f"dataset.augment.episodes={cfg.dataset.augment.episodes}: not of features; leave it out")


def check_new_run(cfg: DictConfig) -> None:
    """Check what is asked of new runs alone, since older ones may lack it; print a note on files that are not read.

    Raises:
        FewshotError: the best checkpoint would be chosen on classes of the training, the outer rate is not the
            optimiser's, or features do not use a setting of images or do not suit the network.
    """
    check_new_rate(cfg.train.outer_optimizer, cfg.train.outer_lr)
    if cfg.train.train_on_val and cfg.train.validate_every and cfg.train.select == "best":
        raise FewshotError(
            "train.train_on_val=true: the best checkpoint would be chosen on classes of the training; set "
            "train.select=last"
        )
    if cfg.train.train_on_val and cfg.dataset.reader.get("classes") == "same":
        raise FewshotError(
            "train.train_on_val=true: with dataset.reader.classes=same each class would be two; leave it out"
        )
    if not is_on_features(cfg):
        return
    check_takes_features(cfg)
    reader, choice = cfg.features.reader, f"{cfg.features.name} features"
    for key in ("crop", "mean", "std"):
        used = "view" in reader or (key == "crop" and key in reader)
        if cfg.dataset[key] is not None and not used:
            remedy = f"set features.{key}" if key in reader else "leave it out"
            raise FewshotError(f"dataset.{key}={cfg.dataset[key]}: {choice} do not use it; {remedy}")
    if "images" not in reader and HydraConfig.initialized():
        for word in given_overrides():
            if word.lstrip("+").startswith("dataset.reader."):
                print_note(f"{word}: has no effect, since {choice} are read as they are; features=conv4 reads images")


def training_shape(cfg: DictConfig) -> tuple[int, int, int]:
    """(N, K, Q) of the training tasks: `way`, `shot` and as many queries as shots, unless `train` says otherwise."""
    way = cfg.way if cfg.train.way is None else cfg.train.way
    shot = cfg.shot if cfg.train.shot is None else cfg.train.shot
    return way, shot, shot if cfg.train.query is None else cfg.train.query


def read_sources(cfg: DictConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """A Bank of images or features by split, or in a regression Functions or Tables.

    Raises:
        FewshotError: the data are faulty; or they, or pretrained weights, are not those that `run_dir` began with.
    """
    began_with = load_data_info(run_dir) if run_dir is not None else None
    node = cfg.features if is_on_features(cfg) else cfg.dataset
    extractor = {"device": cfg.device, "may_train": began_with is None} if "settings" in node.reader else {}
    sources = instantiate_node(node.reader, **extractor)
    for split, source in sources.items():
        if began_with is not None and began_with.get(split) != source.fingerprint:
            named = " or dataset.name=<another name>" * ("name" in cfg.dataset.reader)  # of a person's own
            raise FewshotError(
                f"{run_dir}: this run is on other data (its split {split} differs from what the readers find now); "
                f"put that data back, or start a new run with run_dir=<another folder>{named}"
            )
    if run_dir is not None and began_with is not None and cfg.backbone.network.get("weights") is not None:
        _check_weights(cfg.backbone.network, began_with, run_dir)
    return sources


def _check_weights(network: DictConfig, began_with: Mapping[str, Any], run_dir: Path) -> None:
    """Raises FewshotError if the pretrained weights of a network are not those that the run in `run_dir` began with."""
    records = sorted(run_dir.glob(f"{TESTS}/*/record.json"))  # which say it of older runs
    began = began_with.get(WEIGHTS) or next((read_record(record).get("weights") for record in records), None)
    if began is None:
        return
    path = find_weights(network.model, network.weights)
    if hash_file(path) != began["sha256"]:
        raise FewshotError(
            f"{run_dir}: this run began with other weights ({began['file']}, SHA-256 {began['sha256']:.8}) than {path} "
            "has; put them back, or start a new run with run_dir=<another folder> and backbone.name=<a name for these>"
        )


def _move(source: Any, device: torch.device) -> Any:
    """A source on the device; the examples of a bank only if they fit."""
    if isinstance(source, Bank):
        return source.to(device, examples=fits_on_device(source.examples.nbytes, device))
    return source.to(device)
