"""Features of images by an extractor that was trained on the meta-train classes, as Banks.

LEO learns on such features. Its authors released features (`fewshot.data.datasets.leo_embeddings`), but no extractor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.backbones.norm import BatchStatNorm
from fewshot.core.device import pick_device
from fewshot.core.distributed import on_all_cores
from fewshot.core.environment import code
from fewshot.core.errors import FewshotError
from fewshot.core.files import lock_dir
from fewshot.core.paths import expand_path
from fewshot.core.progress import print_note
from fewshot.data.bank import SPLITS, Bank, open_banks, write_banks
from fewshot.tasks.transforms import view_of
from fewshot.training.checkpoint import check_state, digest_tensors, load_checkpoint
from fewshot.training.extractor import (
    check_extractor_settings,
    extract,
    make_classifier,
    train_extractor,
    validation_sampler,
)
from fewshot.training.folder import ADDRESS, describe_modules
from fewshot.training.settings import LATER_OF_EXTRACTORS


def extract_features(
    images: Mapping[str, Bank],
    network: Callable[..., nn.Module],
    *,
    name: str,
    settings: Mapping[str, Any],
    view: Mapping[str, Any],
    cache: str | Path,
    device: str = "auto",
    may_train: bool = True,
) -> dict[str, Bank]:
    """The features of every split, by an extractor that is trained on the classes of "train" alone.

    They are made once and then opened; a run waits for another that is making them. An interrupted training continues
    from its last epoch.

    Args:
        images: the banks "train", "val" and "test".
        network: makes the classifier from `shape` and `way`: a module with `embed(x) -> [B, D]`, such as
            `functools.partial(Conv4, norm="running")`. Its norms must keep running averages: an image's features then
            depend on that image alone.
        name: of the network, for messages and folders.
        settings: all of epochs, batch, lr, schedule (cosine | step), momentum, weight_decay, augment (as
            `ImageTransform`'s) and seed; of way, shot, query and episodes of the validation by nearest class means that
            selects the epoch; and, if wanted, precision (float32 | bfloat16), and small_size and small_epochs of a
            training on small images before.
        view: crop, mean, std and shape of the dataset's configuration, see `ImageTransform`.
        may_train: False for a run that began on such features: if they are gone, they must not be made anew.
        cache: folder in which the features are kept; the extractor is kept below `extractors`.
        device: of the training, see `train`.

    Raises:
        FewshotError: a setting out of range, a network that has no features, a loss that is not finite, or a damaged
            checkpoint.
    """
    if lacking := [split for split in SPLITS if split not in images]:
        raise FewshotError(f"images: no {' and no '.join(lacking)}; give the banks train, val and test")
    settings = LATER_OF_EXTRACTORS | dict(settings)
    check_extractor_settings(settings)
    transform = view_of(view)
    extractor = make_classifier(network, transform.output_shape(images["train"].shape), images["train"], settings)
    if not hasattr(extractor, "embed") or not any(True for _ in extractor.parameters()):
        raise FewshotError(
            f"extractor {name}: this network has no features to train, no method embed(x) with parameters; "
            "choose conv4, resnet12 or wrn28_10"
        )
    for module in extractor.modules():
        if isinstance(module, BatchStatNorm) or (isinstance(module, _BatchNorm) and module.running_mean is None):
            raise FewshotError(
                "features.network.norm=batch: an image's features would depend on others; set norm=running, or build "
                "batch norms with track_running_stats=True"
            )
    validation_sampler(images["val"], settings)
    fingerprints = {split: bank.fingerprint for split, bank in images.items()}
    choices = _describe_network(network, extractor)
    initial = digest_tensors(extractor.state_dict())
    counted = dict(settings.items() - LATER_OF_EXTRACTORS.items())
    inputs = json.dumps([fingerprints, initial, choices, counted, str(transform)], sort_keys=True)
    key = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    title = f"{images['train'].metadata.get('dataset', 'images')}-{name}-{key}"
    cache = expand_path(cache)
    folder, work = cache / f"features-{title}", cache / "extractors" / title
    if not (folder / "bank.json").exists():
        if not may_train:
            raise FewshotError(
                f"{folder}: the features with which this run began are gone, or these are not the images of the run; "
                "put them back, or train anew"
            )
        torch_device, title_of_bar = pick_device(device), f"extractor {name}, {len(images['train'].names)} classes"
        with lock_dir(work, wait=True), on_all_cores():
            if not (folder / "bank.json").exists():  # else another run has just made them
                extractor, best = train_extractor(
                    network, images, transform, settings, work, device=torch_device, title=title_of_bar
                )
                about = {
                    "dataset": images["train"].metadata.get("dataset", "images"),
                    "folder": folder.name,
                    "extractor": {
                        "name": name,
                        "validation_accuracy": best["accuracy"],
                        "validation": f"{settings['way']}-way {settings['shot']}-shot, nearest class mean",
                        "epoch": best["epoch"],
                        "train_seconds": best["train_seconds"],
                        "device": " and ".join(best["devices"]) or "unknown",
                        "processors": best["processors"],
                        "software": best["software"],
                        "code": code() | {"training": best["code"]},
                        "fingerprint": digest_tensors(extractor.state_dict()),
                        "images": fingerprints,
                        "settings": settings,
                    },
                    "images": {split: dict(bank.metadata) for split, bank in images.items()}["train"],
                }
                splits = {split: extract(extractor, bank, transform) for split, bank in images.items()}
                write_banks(folder, splits, about)
    elif may_train:
        print_note(f"{name} features: those in {folder}, made before")
    return {split: replace(bank, images=images[split]) for split, bank in open_banks(folder).items()}


def _describe_network(network: Callable[..., nn.Module], extractor: nn.Module) -> list[str]:
    """What makes an extractor besides its initial weights, the same in each process.

    The name of a class and its options say it; of a function, what it returns.
    """
    func, options = getattr(network, "func", network), getattr(network, "keywords", {})
    parts = [] if isinstance(func, type) else [describe_modules(extractor)]
    return [ADDRESS.sub("", str(each)) for each in (func, options, *getattr(network, "args", ()), *parts)]


def open_features(images: Mapping[str, Bank], folder: str | Path) -> dict[str, Bank]:
    """Open features that `tools/pretrain.py` wrote for these images.

    Raises:
        FewshotError: the folder has no features, or their extractor was trained on other images than the meta-train
            classes at hand, or they are features of other images.
    """
    folder = expand_path(folder)
    if not (folder / "bank.json").is_file():
        raise FewshotError(f"{folder}: no features there; give the folder that tools/pretrain.py printed")
    banks = open_banks(folder)
    fingerprints = next(iter(banks.values())).metadata.get("extractor", {}).get("images", {})
    for split in SPLITS:
        if split not in images or fingerprints.get(split) != images[split].fingerprint:
            raise FewshotError(
                f"{folder}: its extractor was trained on another split or on other images ({split} differs), so that "
                "it may know the test classes; run tools/pretrain.py with the dataset as it is set here"
            )
    return {split: replace(bank, images=images.get(split)) for split, bank in banks.items()}


def load_extractor(extractor: nn.Module, cache: Path, about: Mapping[str, Any]) -> None:
    """Load the weights that features were made with into a network like their extractor.

    Args:
        cache: folder of the features.
        about: the features' metadata.

    Raises:
        FewshotError: the weights are not there, are damaged, or are not those of the features.
    """
    path = extractor_folder(cache, about) / "best.safetensors"
    if not path.is_file():
        raise FewshotError(f"{path}: the extractor is not there; put it back")
    device = next(extractor.parameters()).device
    tensors = check_state(path, load_checkpoint(path, device)[0].get("weights", {}), extractor.state_dict())
    if digest_tensors(tensors) != about["extractor"]["fingerprint"]:
        raise FewshotError(f"{path}: not the extractor that made the features; put that one back")
    extractor.load_state_dict(tensors)


def extractor_folder(cache: Path, about: Mapping[str, Any]) -> Path:
    """Where the extractor of features lies; `about` is the features' metadata."""
    return cache / "extractors" / about["folder"].removeprefix("features-")
