"""Feature extractors: a classifier of the meta-train classes, trained once, whose features become a Bank.

LEO learns on such features. Its authors released features (`fewshot.data.datasets.leo_embeddings`), but no extractor.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.nearest import Nearest
from fewshot.backbones.identity import Identity
from fewshot.backbones.norm import BatchStatNorm
from fewshot.core.checks import check_choice, check_number
from fewshot.core.device import pick_device
from fewshot.core.errors import FewshotError, TaskSizeError
from fewshot.core.files import lock_dir
from fewshot.core.paths import expand_path
from fewshot.core.progress import progress_bar
from fewshot.core.random import fold_in, permutation, stream
from fewshot.data.bank import Bank, Split, open_banks, write_banks
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import score_episodes
from fewshot.tasks.sampler import Sampler
from fewshot.tasks.transforms import ImageTransform, view_of
from fewshot.training.checkpoint import check_state, load_checkpoint, save_checkpoint

AT_ONCE = 500  # images per forward pass when features are extracted


def features(
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

    They are made once and then opened. An interrupted training continues from its last epoch.

    Args:
        images: the banks "train", "val" and "test".
        network: makes the classifier from `shape` and `way`: a module with `embed(x) -> [B, D]`.
        name: of the network, for messages and folders.
        settings: epochs, batch, lr, schedule (cosine | step), momentum, weight_decay, augment (none | natural), seed,
            and way, shot, query and episodes of the validation by nearest class means that selects the epoch.
        view: crop, mean, std and shape of the dataset's configuration, see `ImageTransform`.
        may_train: False for a run that began on such features: if they are gone, they must not be made anew.
        cache: folder in which the features are kept; the extractor is kept below `extractors`.

    Raises:
        FewshotError: a setting out of range, a network that has no features, a loss that is not finite, or a damaged
            checkpoint.
    """
    _check(settings)
    transform = view_of(view)
    shape, classes = transform.output_shape(images["train"].shape), len(images["train"].names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        extractor = network(shape=shape, way=classes)
    if not hasattr(extractor, "embed"):
        raise FewshotError(
            f"features={name}: this network has no features, no method embed(x); choose conv4, resnet12 or wrn28_10"
        )
    if any(isinstance(module, BatchStatNorm) for module in extractor.modules()):
        raise FewshotError("features.network.norm=batch: an image's features would depend on others; set norm=running")
    _validation_sampler(images["val"], settings)
    fingerprints = {split: bank.fingerprint for split, bank in images.items()}
    choices = [str(getattr(network, "func", network)), str(getattr(network, "keywords", {}))]
    initial = digest_tensors(extractor.state_dict())
    inputs = json.dumps([fingerprints, initial, choices, dict(settings), str(transform)], sort_keys=True)
    key = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    title = f"{images['train'].metadata.get('dataset', 'images')}-{name}-{key}"
    cache = expand_path(cache)
    folder, work = cache / f"features-{title}", cache / "extractors" / title
    if not (folder / "bank.json").exists():
        if not may_train:
            raise FewshotError(
                f"{folder}: the features that this run learned on are gone, or these are not the images of the run; "
                "put them back, or train anew"
            )
        extractor.to(pick_device(device))
        with lock_dir(work):
            best = _train(extractor, images, transform, settings, work, f"extractor {name}, {classes} classes")
            about = {
                "dataset": images["train"].metadata.get("dataset", "images"),
                "folder": folder.name,
                "extractor": {
                    "name": name,
                    "validation_accuracy": best["accuracy"],
                    "validation": f"{settings['way']}-way {settings['shot']}-shot, nearest class mean",
                    "epoch": best["epoch"],
                    "train_seconds": best["train_seconds"],
                    "fingerprint": digest_tensors(extractor.state_dict()),
                    "images": fingerprints,
                    "settings": dict(settings),
                },
                "images": {split: dict(bank.metadata) for split, bank in images.items()}["train"],
            }
            splits = {split: extract(extractor, bank, transform) for split, bank in images.items()}
            write_banks(folder, splits, about)
    return {split: replace(bank, images=images[split]) for split, bank in open_banks(folder).items()}


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
    for split in ("train", "val", "test"):
        if fingerprints.get(split) != images[split].fingerprint:
            raise FewshotError(
                f"{folder}: its extractor was trained on another split or on other images ({split} differs), so that "
                "it may know the test classes; run tools/pretrain.py with the dataset as it is set here"
            )
    return {split: replace(bank, images=images.get(split)) for split, bank in banks.items()}


def _check(settings: Mapping[str, Any]) -> None:
    for name in ("epochs", "batch", "way", "shot", "query", "episodes"):
        check_number(f"features.settings.{name}", settings[name], int, 1)
    for name in ("lr", "momentum", "weight_decay"):
        check_number(f"features.settings.{name}", settings[name], float, 0)
    check_choice("features.settings.schedule", settings["schedule"], ("cosine", "step"))
    check_choice("features.settings.augment", settings["augment"], ("none", "natural"))


def _train(
    extractor: nn.Module,
    images: Mapping[str, Bank],
    transform: ImageTransform,
    settings: Mapping[str, Any],
    work: Path,
    title: str,
) -> dict[str, Any]:
    """Train to the last epoch, from the last one on disk. `extractor` ends with the weights of the best epoch.

    Returns:
        {accuracy, epoch} of the best epoch, and train_seconds of all epochs.
    """
    bank, device = images["train"], next(extractor.parameters()).device
    augmented = replace(transform, augment=settings["augment"])
    labels = torch.arange(len(bank.names)).repeat_interleave(bank.sizes)
    optimizer = torch.optim.SGD(
        extractor.parameters(), lr=settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )
    last, best = work / "last.safetensors", work / "best.safetensors"
    state: dict[str, Any] = {"epoch": 0, "best": None, "seconds": 0.0}
    if last.exists():
        groups, state = load_checkpoint(last, device)
        _load(extractor, last, groups)
        for name, value in groups.get("momentum", {}).items():
            optimizer.state[extractor.get_parameter(name)]["momentum_buffer"] = value
    loss = torch.zeros(())
    batches = -(-len(labels) // settings["batch"])
    with progress_bar(title, settings["epochs"] * batches, state["epoch"] * batches) as advance:
        for epoch in range(state["epoch"], settings["epochs"]):
            start = time.perf_counter()
            extractor.train()
            order = permutation(torch.tensor(stream(settings["seed"], "epoch", epoch)), len(labels))
            for index, rows in enumerate(order.split(settings["batch"])):
                step = epoch * batches + index
                keys = fold_in(stream(settings["seed"], "augment", epoch), rows)
                x = augmented(bank.examples[rows].to(device), keys.to(device))
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(stream(settings["seed"], "dropout", step))
                    loss = F.cross_entropy(extractor(x), labels[rows].to(device))
                for group in optimizer.param_groups:
                    group["lr"] = settings["lr"] * _schedule(
                        settings["schedule"], step / (batches * settings["epochs"])
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                advance("" if state["best"] is None else f"validation {state['best']['accuracy']:.1%}")
            if not bool(torch.isfinite(loss)):
                raise FewshotError(f"extractor: epoch {epoch + 1}: the loss is not finite; lower features.settings.lr")
            state["epoch"], state["seconds"] = epoch + 1, state["seconds"] + time.perf_counter() - start
            accuracy = _validation(extractor, images["val"], transform, settings)
            if state["best"] is None or accuracy > state["best"]["accuracy"]:
                state["best"] = {"accuracy": accuracy, "epoch": epoch + 1}
                save_checkpoint(best, {"weights": extractor.state_dict()}, state)
            momentum = {
                name: buffer
                for name, parameter in extractor.named_parameters()
                if (buffer := optimizer.state.get(parameter, {}).get("momentum_buffer")) is not None
            }
            save_checkpoint(last, {"weights": extractor.state_dict(), "momentum": momentum}, state)
    _load(extractor, best, load_checkpoint(best, device)[0])
    return state["best"] | {"train_seconds": round(state["seconds"], 3)}


def _load(extractor: nn.Module, path: Path, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    extractor.load_state_dict(check_state(path, groups.get("weights", {}), extractor.state_dict()))


def _schedule(kind: str, done: float) -> float:
    """The factor of the learning rate: half a cosine; or 0.1 from half of the training on, 0.01 from three quarters."""
    return 0.5 * (1 + cos(pi * done)) if kind == "cosine" else 0.1 ** ((done >= 0.5) + (done >= 0.75))


def extract(
    extractor: nn.Module,
    bank: Bank,
    transform: ImageTransform,
    at_once: int = AT_ONCE,
    advance: Callable[..., None] = lambda by: None,
) -> Split:
    """Features [M, D] float32 of a split, each of one image alone, by the extractor's `embed`.

    Args:
        at_once: images of one forward.
        advance: called after each forward with `by`, its number of images; see `progress_bar`.
    """
    extractor.eval()
    device = next(extractor.parameters()).device
    assert callable(extractor.embed)
    features = np.empty((0, 0), np.float32)
    with torch.no_grad():
        for first in range(0, len(bank.examples), at_once):
            part = extractor.embed(transform(bank.examples[first : first + at_once].to(device))).cpu().numpy()
            if not first:
                features = np.empty((len(bank.examples), part.shape[1]), np.float32)
            features[first : first + at_once] = part
            advance(by=len(part))
    return Split(features, bank.sizes.tolist(), list(bank.names))


def _validation(extractor: nn.Module, bank: Bank, transform: ImageTransform, settings: Mapping[str, Any]) -> float:
    """Few-shot accuracy of nearest class means on the features of the validation classes."""
    split = extract(extractor, bank, transform)
    features = Bank(torch.from_numpy(split.examples), bank.offsets, bank.names, bank.split, "", bank.metadata)
    sampler = _validation_sampler(features, settings)
    learner = Nearest(Identity(features.shape, settings["way"]), reference="mean")
    return float(
        score_episodes(learner, {}, {}, sampler, settings["episodes"], transductive=False, engine=Engine()).mean()
    )


def _validation_sampler(bank: Bank, settings: Mapping[str, Any]) -> Sampler:
    try:
        return Sampler(bank, settings["way"], settings["shot"], settings["query"], settings["seed"])
    except TaskSizeError as error:
        keys = "features.settings.way, features.settings.shot and features.settings.query"
        raise TaskSizeError(f"validation of the extractor: {error}; here these are {keys}") from error


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names and bytes of tensors in their order."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
