"""A trained run from its folder alone, to use it on new examples: `fewshot.load_run`. The run's images are not read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from fewshot.core.device import pick_device
from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.experiment.config import is_on_features, is_regression, resolved
from fewshot.experiment.make_learner import make_extractor, make_learner
from fewshot.experiment.run_dir import TESTS, data_info_of, find_run, saved_config
from fewshot.report.records import read_record
from fewshot.tasks.transforms import ImageTransform, view_of
from fewshot.training.features import load_extractor
from fewshot.training.inputs import Inputs, spec_of
from fewshot.training.pretrained import pretrained_extractor
from fewshot.training.selected import load_selected
from fewshot.training.settings import TrainSettings
from fewshot.training.trained import Trained

MOVED = "put them back, or say by data_dir where they are now"


def load_run(
    folder: str | Path, *, checkpoint: str | None = None, device: str = "auto", data_dir: str | Path | None = None
) -> Trained:
    """The trained learner of a run that tools/train.py left, with its network and its view of images.

    A run on features takes images too, where their extractor is still there: one of this project's in the folder of
    prepared data, or the file of torchvision's weights. Else it takes features alone.

    Args:
        folder: of the run, or of a test of it, as train.py prints it.
        checkpoint: `best`, `last` or a file beside them; None: the one that the run selects.
        device: `cpu`, `cuda`, or `auto`, a GPU where there is one.
        data_dir: where the prepared data of the run lies now, if it moved; for the extractor of a run on features.

    Raises:
        FewshotError: the folder holds no run that has been trained, or it is damaged.
    """
    folder, torch_device = find_run(expand_path(folder)), pick_device(device)
    cfg = saved_config(folder, data_dir=None if data_dir is None else str(expand_path(data_dir)))
    info = data_info_of(folder)
    shape = tuple(info["shape"])
    learner = make_learner(cfg, shape, len(info.get("outputs", ())) or cfg.way, torch_device)
    settings = TrainSettings(**resolved(cfg)["train"])
    trained = load_selected(learner, settings, folder, torch_device, checkpoint)
    if is_regression(cfg.dataset):
        return trained
    inputs = _inputs(cfg, info, folder, torch_device)
    reader = cfg.dataset.reader
    is_known = str(reader._target_).startswith("fewshot.")  # a person's own reader makes images in its own way
    # A person's photos, of any dataset's run.
    spec = spec_of(inputs.shape, reader, upright=reader.get("upright", True)) if is_known else None
    return replace(trained, inputs=replace(inputs, spec=spec))


def _inputs(cfg: DictConfig, info: dict[str, Any], folder: Path, device: torch.device) -> Inputs:
    """The examples that the run was trained on."""
    shape, dataset = tuple(info["shape"]), resolved(cfg)["dataset"]
    if is_on_features(cfg):
        try:
            return _inputs_of_features(cfg, info, folder, device)
        except FewshotError as error:
            return Inputs(shape, ImageTransform(), cfg.way, torch.float32, no_extractor=str(error))
    if len(shape) == 3 and dataset["crop"] is not None:  # of images that the reader made this large
        size = dataset["reader"].get("size") or dataset["crop"]  # of older runs
        shape = tuple(info.get("image_shape", (shape[0], size, size)))
    floats = info.get("float_images")  # of a person's own reader
    dtype = torch.uint8 if len(shape) == 3 and floats is None else torch.float32
    unit_range = floats is None or floats["unit_range"]
    return Inputs(shape, view_of(dataset), cfg.way, dtype, unit_range=unit_range)


def _inputs_of_features(cfg: DictConfig, info: dict[str, Any], folder: Path, device: torch.device) -> Inputs:
    """The images whose features a run was trained on, with their extractor.

    Raises:
        FewshotError: it is not there, or no longer the one that the run began with.
    """
    reader = resolved(cfg)["features"]["reader"]
    pretrained = reader["_target_"] == "fewshot.pretrained_features"
    if not pretrained and "settings" not in reader:
        raise FewshotError(
            f"{cfg.features.name} features are read without their extractor; name a run that trained its own, or one "
            "on features=torchvision"
        )
    cache = expand_path(reader["cache"])
    about = _read_about(cache, info, folder)
    images = _find_bank(cache, about["extractor"]["images"]["train"])
    if images is None:
        raise FewshotError(f"the run's prepared images are not in {cache}; {MOVED}")
    stored = images["splits"]["train"]
    shape = tuple(stored["shape"][1:])
    if pretrained:
        choices = {key: reader[key] for key in ("size", "mean", "std", "crop")}
        extractor, view = pretrained_extractor(reader["model"], reader["weights"], **choices)
        expected = about["extractor"]["weights"]["sha256"]
        if extractor.weights is None or extractor.weights["sha256"] != expected:
            raise FewshotError(
                f"weights={reader['weights']}: not the file that the run began with, whose SHA-256 begins with "
                f"{expected:.12}; put that one back"
            )
        return Inputs(shape, view, cfg.way, torch.uint8, extractor.to(device), info["shape"][0])
    view = view_of(resolved(cfg)["dataset"])
    extractor = make_extractor(cfg, view.output_shape(shape), len(stored["names"])).to(device)
    load_extractor(extractor, cache, about)
    return Inputs(shape, view, cfg.way, torch.uint8, extractor.eval(), info["shape"][0])


def _read_about(cache: Path, info: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the features of a run say of their extractor: in a record of the run, or, before its first test, there.

    Raises:
        FewshotError: there is neither.
    """
    for record in sorted((folder / TESTS).glob("*/record.json")):
        return read_record(record)["data"]["about"]
    features = _find_bank(cache, info["train"])
    if features is None:
        raise FewshotError(f"the run has no record, and its prepared features are not in {cache}; {MOVED}")
    return features["about"]


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
