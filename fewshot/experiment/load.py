"""A trained run from its folder alone, to use it on new examples: `fewshot.load_run`. The run's images are not read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from fewshot.core.device import pick_device
from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.experiment.build import instantiate_node, make_network
from fewshot.experiment.config import is_regression, resolved
from fewshot.experiment.run_dir import load_data_info, saved_config
from fewshot.tasks.transforms import ImageTransform, view_of
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.inputs import Inputs
from fewshot.training.loop import load_selected
from fewshot.training.settings import TrainSettings
from fewshot.training.trained import Trained


def load_run(folder: str | Path, *, checkpoint: str | None = None, device: str = "auto") -> Trained:
    """The trained learner of a run that tools/train.py left, with its network and its view of images.

    A run on features that this project's extractor made takes images too, where its extractor is still in the folder of
    prepared data; else it takes features.

    Args:
        folder: of the run, as the tool printed it.
        checkpoint: `best`, `last` or a file beside them; None: the one that the run selects.
        device: `cpu`, `cuda`, or `auto`, a GPU where there is one.

    Raises:
        FewshotError: the folder holds no run that has been trained, or it is damaged.
    """
    folder, place = expand_path(folder), pick_device(device)
    cfg = saved_config(folder)
    info = load_data_info(folder)
    if info is None:
        raise FewshotError(f"{folder}: the run has not begun; train it first")
    shape = tuple(info["shape"])
    network = make_network(cfg.backbone, shape, cfg.way)
    learner = instantiate_node(cfg.algorithm.learner, backbone=network.to(place))
    settings = TrainSettings(**resolved(cfg)["train"])
    trained = load_selected(learner, settings, folder, place, checkpoint)
    if is_regression(cfg.dataset):
        return trained
    return replace(trained, inputs=_inputs(cfg, info, place))


def _inputs(cfg: DictConfig, info: dict[str, Any], device: torch.device) -> Inputs:
    """The examples that the run was trained on."""
    shape, dataset = tuple(info["shape"]), resolved(cfg)["dataset"]
    if cfg.features.name is not None:
        found = _find_extractor(cfg, info, device) if "settings" in cfg.features.reader else None
        if found is None:
            return Inputs(shape, ImageTransform(), cfg.way, torch.float32)
        extractor, images = found
        return Inputs(images, view_of(dataset), cfg.way, torch.uint8, extractor)
    if len(shape) == 3 and dataset["crop"] is not None:  # of images that the reader made this large
        shape = shape[0], *[dataset["reader"].get("size", dataset["crop"])] * 2
    return Inputs(shape, view_of(dataset), cfg.way, torch.uint8 if len(shape) == 3 else torch.float32)


def _find_extractor(
    cfg: DictConfig, info: dict[str, Any], device: torch.device
) -> tuple[nn.Module, tuple[int, ...]] | None:
    """The extractor of the features that a run began with, and the shape of its images; None where it is not there."""
    cache = expand_path(cfg.features.reader.cache)
    features = _find_bank(cache, info["train"])
    if features is None:
        return None
    images = _find_bank(cache, features["about"]["extractor"]["images"]["train"])
    weights = cache / "extractors" / str(features["about"]["folder"]).removeprefix("features-") / "best.safetensors"
    if images is None or not weights.is_file():
        return None
    stored, reader = images["splits"]["train"], cfg.features.reader
    image_shape = tuple(stored["shape"][1:])
    shape = view_of(resolved(cfg)["dataset"]).output_shape(image_shape)
    extractor = instantiate_node(reader.network)(shape=shape, way=len(stored["names"])).to(device)
    extractor.load_state_dict(load_checkpoint(weights, device)[0]["weights"])
    return extractor.eval(), image_shape


def _find_bank(cache: Path, fingerprint: str) -> dict[str, Any] | None:
    """The bank.json below a folder whose training split has this fingerprint; None if there is none."""
    for path in sorted(cache.glob("*/bank.json")):
        try:
            listing = json.loads(path.read_text(encoding="utf-8"))
            if listing["splits"]["train"]["sha256"] == fingerprint:
                return listing
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another bank, which is damaged or has no such split
    return None
