"""What labels a person's images: the learner of a run, or class means of a pretrained network's features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.nearest import Nearest
from fewshot.backbones.identity import Identity
from fewshot.core.checks import check_choice
from fewshot.core.device import pick_device
from fewshot.core.errors import FewshotError
from fewshot.data.sources.images import ImageSpec
from fewshot.data.sources.split_csv import to_nfc
from fewshot.experiment.load import load_run
from fewshot.experiment.run_dir import data_info_of, find_run, saved_config
from fewshot.experiment.transfer import LIGHT_ON_DARK
from fewshot.training.inputs import Inputs
from fewshot.training.loop import is_trainable
from fewshot.training.pretrained import pretrained_extractor
from fewshot.training.trained import Trained


@dataclass(frozen=True)
class Predictor:
    """A learner, and how a person's images become examples of it."""

    name: str
    trained: Trained
    light_on_dark: bool = False  # whether it has seen nothing but light strokes on a dark ground
    known_classes: frozenset[str] = frozenset()  # names of the classes of the training

    @property
    def spec(self) -> ImageSpec:
        """How an image file becomes an example."""
        assert self.trained.inputs is not None and self.trained.inputs.spec is not None
        return self.trained.inputs.spec


def load_predictor(cfg: DictConfig) -> Predictor:
    """What `run` names, or `method` and `features`.

    Raises:
        FewshotError: none or both are given, the run is on no images, or the extractor is not there.
    """
    if cfg.method is None:
        if OmegaConf.is_missing(cfg, "run"):
            raise FewshotError(
                "run: has no value; set run=<run folder>, or method=nearest_mean features=torchvision "
                "features.weights=<file>"
            )
        if cfg.features.name is not None:
            raise FewshotError("features: a run has its own; leave features out, or give a method, not a run")
        return _of_run(find_run(Path(cfg.run)), cfg.device, cfg.data_dir)
    if cfg.method == "nearest":
        raise FewshotError("method=nearest: compares pixels by a run; train algorithm=nearest, and give its run")
    check_choice("method", cfg.method, ("nearest_mean",))
    if not OmegaConf.is_missing(cfg, "run"):
        raise FewshotError(f"method={cfg.method}: needs no run; leave run out, or method")
    if cfg.data_dir is not None:
        raise FewshotError(f"data_dir={cfg.data_dir}: is of a run, and there is none; leave it out")
    return _of_features(cfg)


def _of_run(folder: Path, device: str, data_dir: str | None) -> Predictor:
    cfg, trained = saved_config(folder), load_run(folder, device=device, data_dir=data_dir)
    if trained.inputs is None:
        raise FewshotError(f"run={folder}: learned functions, which have no classes; name a run on images")
    if len(trained.inputs.shape) != 3:
        raise FewshotError(
            f"run={folder}: learned on {cfg.features.name} features, which cannot be made of other images: "
            f"{trained.inputs.no_extractor}"
        )
    if trained.inputs.spec is None:
        raise FewshotError(
            f"run={folder}: its reader, {cfg.dataset.reader._target_}, makes images in its own way; label examples "
            "from Python, by fewshot.load_run"
        )
    name = f"{cfg.algorithm.name} of run {folder.absolute().name}"
    if is_trainable(trained.learner) and trained.steps < cfg.train.steps:
        name += f" after {trained.steps:,} of {cfg.train.steps:,} steps"
    light_on_dark = cfg.dataset.reader._target_ in LIGHT_ON_DARK
    learns = is_trainable(trained.learner) or trained.inputs.extractor is not None
    known = frozenset(map(to_nfc, data_info_of(folder)["classes"])) if learns else frozenset()
    return Predictor(name, trained, light_on_dark, known)


def _of_features(cfg: DictConfig) -> Predictor:
    if "model" not in cfg.features:
        raise FewshotError(
            f"method={cfg.method}: takes features=torchvision features.weights=<file>; for an extractor of your own "
            "images train algorithm=nearest_mean, which trains only the extractor, and give its run"
        )
    chosen = cfg.features
    weights = None if OmegaConf.is_missing(chosen, "weights") else chosen.weights
    extractor, view = pretrained_extractor(chosen.model, weights, size=chosen.size, mean=chosen.mean, std=chosen.std)
    assert view.shape is not None
    device, width = pick_device(cfg.device), extractor.head.in_features
    spec = ImageSpec(view.shape[1], resample="bilinear", upright=True)
    inputs = Inputs(view.shape, view, 2, torch.uint8, extractor.to(device), width, spec=spec)
    learner = Nearest(Identity((width,), 2), reference="mean")
    trained = Trained(learner, {}, {}, inputs=inputs)
    name = f"{cfg.method} of {chosen.name} features"
    return Predictor(name, trained)
