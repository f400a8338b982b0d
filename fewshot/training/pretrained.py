"""Features of any images by one of torchvision's classifiers with pretrained weights, as a Bank. Nothing is trained."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewshot.backbones.torchvision import TorchVision, checked_name
from fewshot.backbones.weights import cache_command
from fewshot.core.checks import check_number
from fewshot.core.device import pick_device
from fewshot.core.errors import FewshotError
from fewshot.core.files import lock_dir
from fewshot.core.paths import expand_path
from fewshot.core.progress import progress_bar
from fewshot.core.random import seeded
from fewshot.data.bank import Bank, Split, open_banks, write_banks
from fewshot.tasks.transforms import ImageTransform
from fewshot.training.extractor import extract
from fewshot.training.inputs import PIXELS_AT_ONCE


def pretrained_features(
    images: Mapping[str, Bank],
    model: str,
    weights: str,
    *,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: int | None = None,
    cache: str | Path,
    device: str = "auto",
) -> dict[str, Bank]:
    """The features of every split, each of one image alone. They are made once and then opened.

    The whole image is resized (bilinear, antialiased), where torchvision's own preprocessing resizes its shorter side
    to somewhat more than `size` and keeps the middle. Grey images are copied to three channels.

    Args:
        images: banks of images [M, C, H, W] by split.
        model, weights: as of `TorchVision`.
        size: side that images are resized to; None: that of the weights in torchvision, of a file that of its best.
        mean, std: of each channel, in units of 0..1; None: those of the weights in torchvision.
        crop: side of the square that is cut from the middle before; None: all.
        cache: folder in which the features are kept.

    Returns:
        Banks of features [M, D]. Their metadata holds the model, the hash of the weights and the preprocessing.

    Raises:
        FewshotError: as `TorchVision`, or a setting out of range.
    """
    extractor, transform = pretrained_extractor(model, weights, size=size, mean=mean, std=std, crop=crop)
    assert extractor.weights is not None and transform.shape and transform.mean and transform.std
    for bank in images.values():
        if len(bank.shape) != 3:
            raise FewshotError(
                f"features.model={model}: takes images, not features of {bank.shape[0]} values; leave features out"
            )
        transform.output_shape(bank.shape)
    fingerprints = {split: bank.fingerprint for split, bank in images.items()}
    inputs = json.dumps([fingerprints, model, extractor.weights["sha256"], str(transform)], sort_keys=True)
    first = next(iter(images.values()))
    dataset = first.metadata.get("dataset", "images")
    folder = expand_path(cache) / f"features-{dataset}-{model}-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"
    if not (folder / "bank.json").exists():
        extractor.to(pick_device(device))
        about = {
            "name": model,
            "weights": extractor.weights,
            "preprocessing": {
                "crop": crop,
                "size": transform.shape[1],
                "mean": list(transform.mean),
                "std": list(transform.std),
            },
            "images": fingerprints,
        }
        metadata = {"dataset": dataset, "folder": folder.name, "extractor": about, "images": dict(first.metadata)}
        with lock_dir(folder.with_name(f"{folder.name}-work"), wait=True):
            if not (folder / "bank.json").exists():  # else another run has just made them
                splits = _extract(extractor, images, transform, f"features of {dataset} by {model}")
                write_banks(folder, splits, metadata)
    return {split: replace(bank, images=images[split]) for split, bank in open_banks(folder).items()}


def pretrained_extractor(
    model: str,
    weights: str | None,
    *,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: int | None = None,
) -> tuple[TorchVision, ImageTransform]:
    """The network whose `embed` makes features, on the CPU, and the transform of the images that it takes.

    Args and errors are those of `pretrained_features`.
    """
    size, mean, std = _preprocessing(model, weights, size, mean, std)
    check_number("features.size", size, int, 1)
    try:
        transform = ImageTransform(shape=(3, size, size), crop=crop, mean=mean, std=std)
    except FewshotError as error:
        raise FewshotError(re.sub(r"^dataset\.(mean|std)", r"features.\1", str(error))) from error
    if not weights:
        raise FewshotError(
            "features.weights: has no value; set features.weights=<file>, or features.weights=DEFAULT after "
            f"{cache_command(model)}, which fetches the file into torchvision's cache"
        )
    with seeded(0):
        extractor = TorchVision((3, size, size), 1, model=model, weights=weights, norm="running")
    return extractor.eval(), transform


def _preprocessing(
    model: str, weights: str | None, size: int | None, mean: Any, std: Any
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """(size, mean, std), by default as torchvision prepares images for its weights of this name, or else for its best.

    A mean or std of another kind is left to `ImageTransform`.
    """
    from torchvision.models import get_model_weights

    known: Any = get_model_weights(checked_name(model))
    defaults = known.__members__.get(weights, known.DEFAULT).transforms()
    mean, std = (defaults.mean if mean is None else mean), (defaults.std if std is None else std)
    return (
        defaults.crop_size[0] if size is None else size,
        tuple(mean) if isinstance(mean, Sequence) else mean,
        tuple(std) if isinstance(std, Sequence) else std,
    )


def _extract(
    extractor: TorchVision, images: Mapping[str, Bank], transform: ImageTransform, title: str
) -> dict[str, Split]:
    assert transform.shape is not None
    at_once = max(1, PIXELS_AT_ONCE // (transform.shape[1] * transform.shape[2]))
    splits: dict[str, Split] = {}
    total = sum(len(bank.examples) for bank in images.values())
    with progress_bar(title, total) as advance:
        for split, bank in images.items():
            splits[split] = extract(extractor, bank, transform, at_once, advance)
    return splits
