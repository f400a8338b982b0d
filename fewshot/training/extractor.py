"""The training of a feature extractor: a classifier of the meta-train classes, selected by nearest class means."""

from __future__ import annotations

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
from fewshot.backbones.precision import check_bfloat16
from fewshot.core.checks import check_choice, check_number, check_seed, did_you_mean
from fewshot.core.environment import NOTES, note_machine
from fewshot.core.errors import FewshotError, TaskSizeError
from fewshot.core.progress import progress_bar
from fewshot.core.random import fold_in, permutation, seeded, stream
from fewshot.data.bank import Bank, Split
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import score_episodes
from fewshot.tasks.sampler import Sampler
from fewshot.tasks.transforms import AUGMENTATIONS, ImageTransform
from fewshot.training.checkpoint import check_state, load_checkpoint, read_header, save_checkpoint
from fewshot.training.settings import PRECISIONS

SETTINGS = (
    "epochs", "batch", "lr", "schedule", "momentum", "weight_decay", "augment", "precision", "small_size",
    "small_epochs", "seed", "way", "shot", "query", "episodes",
)  # fmt: skip
AT_ONCE = 500  # images per forward pass when features are extracted


def check_extractor_settings(settings: Mapping[str, Any]) -> None:
    """Raises FewshotError for a setting of `train_extractor` that is unknown, missing or out of range."""
    for name in settings.keys() - set(SETTINGS):
        raise FewshotError(f"settings: {name} is no setting of an extractor{did_you_mean(name, SETTINGS)}")
    if missing := [name for name in SETTINGS if name not in settings]:
        raise FewshotError(f"settings: {', '.join(missing)} missing; conf/features/base/extractor.yaml has values")
    for name in ("epochs", "batch", "way", "shot", "query", "episodes"):
        check_number(f"features.settings.{name}", settings[name], int, 1)
    check_seed("features.settings.seed", settings["seed"])
    for name in ("lr", "momentum", "weight_decay"):
        check_number(f"features.settings.{name}", settings[name], float, 0)
    check_choice("features.settings.schedule", settings["schedule"], ("cosine", "step"))
    check_choice("features.settings.augment", settings["augment"], tuple(AUGMENTATIONS))
    check_choice("features.settings.precision", settings["precision"], PRECISIONS)
    check_number("features.settings.small_epochs", settings["small_epochs"], int, 0)
    if settings["small_epochs"]:
        check_number("features.settings.small_size", settings["small_size"], int, 1)
    elif settings["small_size"] is not None:
        raise FewshotError(
            f"features.settings.small_size={settings['small_size']}: is for features.settings.small_epochs, which is 0"
        )


def train_extractor(
    network: Callable[..., nn.Module],
    images: Mapping[str, Bank],
    transform: ImageTransform,
    settings: Mapping[str, Any],
    work: Path,
    *,
    device: torch.device,
    title: str,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a classifier of the classes of "train", and select the epoch whose features serve "val" best.

    Epochs on small images come first, where `small_epochs` asks for them: there an epoch takes a fraction of the time.
    The weights go on from what they learned there; those whose shape depends on the size of the images, a head's, begin
    anew.

    Args:
        network: makes the classifier from `shape` and `way`: a module with `embed(x) -> [B, D]`.
        transform: the view of the images.
        settings: those of `extract_features`.
        work: folder of the checkpoints; an interrupted training continues from its last epoch.

    Returns:
        The extractor with the weights of the selected epoch, and {accuracy, epoch, train_seconds, devices, processors,
        software, code}: the last four as `Trained` has them.

    Raises:
        FewshotError: images that cannot be augmented so, a loss that is not finite, or a damaged checkpoint.
    """
    shape = transform.output_shape(images["train"].shape)
    augmented = replace(transform, augment=settings["augment"])
    try:
        augmented.output_shape(images["train"].shape)
    except FewshotError as error:
        raise FewshotError(str(error).replace("dataset.augment.episodes", "features.settings.augment")) from error
    augmented.check_range("extractor: ", images["train"].examples)
    extractor = make_classifier(network, shape, images["train"], settings).to(device)
    small_part: dict[str, Any] = {"train_seconds": 0.0} | {name: [] for name in NOTES}
    if settings["small_epochs"]:
        small_shape = (shape[0], settings["small_size"], settings["small_size"])
        small = make_classifier(network, small_shape, images["train"], settings).to(device)
        small_settings = dict(settings) | {"epochs": settings["small_epochs"]}
        view = replace(transform, shape=small_shape)
        small_part = _train(small, images, view, small_settings, work / "small", f"{title}, small")
        weights, learned = extractor.state_dict(), small.state_dict()
        extractor.load_state_dict(
            {name: learned[name] if learned[name].shape == weights[name].shape else weights[name] for name in weights}
        )
    selected = _train(extractor, images, transform, settings, work, title)
    selected["train_seconds"] = round(small_part["train_seconds"] + selected["train_seconds"], 3)
    for name in NOTES:
        selected[name] = small_part[name] + [each for each in selected[name] if each not in small_part[name]]
    return extractor, selected


def make_classifier(
    network: Callable[..., nn.Module], shape: tuple[int, ...], bank: Bank, settings: Mapping[str, Any]
) -> nn.Module:
    """The untrained classifier of a bank's classes, whose initialisation depends on `seed` alone."""
    with seeded(settings["seed"]):
        # Where channels are the last axis in memory, convolutions of many images are faster.
        return network(shape=shape, way=len(bank.names)).to(memory_format=torch.channels_last)


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
        {accuracy, epoch} of the best epoch, and of all epochs train_seconds, devices, processors, software and code.
    """
    bank, device = images["train"], next(extractor.parameters()).device
    augmented = replace(transform, augment=settings["augment"])
    labels = torch.arange(len(bank.names)).repeat_interleave(bank.sizes)
    optimizer = torch.optim.SGD(
        extractor.parameters(), lr=settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )
    if settings["precision"] == "bfloat16":
        x = torch.zeros(1, *transform.output_shape(bank.shape), device=device)
        check_bfloat16(extractor, x, "features.settings.precision")
    last, best = work / "last.safetensors", work / "best.safetensors"
    state: dict[str, Any] = {"epoch": 0, "best": None, "seconds": 0.0}
    groups, saved = load_checkpoint(last, device) if last.exists() else ({}, state)
    older = not best.exists() or read_header(best)["epoch"] < saved["epoch"]
    if older and saved["best"] and saved["best"]["epoch"] == saved["epoch"]:  # it died before it wrote this
        save_checkpoint(best, {"weights": groups["weights"]}, saved)
    if groups and best.exists():  # without the best so far, its selection cannot go on
        state = saved
        kept = read_header(best)  # one that is ahead is of an epoch that comes again
        state["best"] = kept["best"] if kept["epoch"] <= state["epoch"] else None
        _load(extractor, last, groups)
        for name, value in groups.get("momentum", {}).items():
            optimizer.state[extractor.get_parameter(name)]["momentum_buffer"] = value
    if state["epoch"] < settings["epochs"]:
        note_machine(state, device, state["epoch"] > 0)
    loss = torch.zeros(())
    sizes = _batch_sizes(len(labels), settings["batch"])
    batches = len(sizes)
    with progress_bar(title, settings["epochs"] * batches, state["epoch"] * batches) as advance:
        for epoch in range(state["epoch"], settings["epochs"]):
            start = time.perf_counter()
            extractor.train()
            order = permutation(torch.tensor(stream(settings["seed"], "epoch", epoch)), len(labels))
            for index, rows in enumerate(order.split(sizes)):
                step = epoch * batches + index
                keys = fold_in(stream(settings["seed"], "augment", epoch), rows)
                x = augmented(bank.examples[rows].to(device), keys.to(device))
                rate = settings["lr"] * _schedule(settings["schedule"], step / (batches * settings["epochs"]))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with seeded(stream(settings["seed"], "dropout", step)):
                    loss = _loss(extractor, x, labels[rows].to(device), settings["precision"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                advance("" if state["best"] is None else f"validation {state['best']['accuracy']:.1%}")
            if not all(bool(torch.isfinite(value).all()) for value in (loss, *extractor.parameters())):
                raise FewshotError(
                    f"extractor: epoch {epoch + 1}: the loss or a weight is not finite; lower features.settings.lr"
                )
            state["epoch"], state["seconds"] = epoch + 1, state["seconds"] + time.perf_counter() - start
            accuracy = _validation(extractor, images["val"], transform, settings)
            improved = state["best"] is None or accuracy > state["best"]["accuracy"]
            if improved:
                state["best"] = {"accuracy": accuracy, "epoch": epoch + 1}
            momentum = {
                name: buffer
                for name, parameter in extractor.named_parameters()
                if (buffer := optimizer.state.get(parameter, {}).get("momentum_buffer")) is not None
            }
            save_checkpoint(last, {"weights": extractor.state_dict(), "momentum": momentum}, state)
            if improved:  # after the last one, from which it can be made again
                save_checkpoint(best, {"weights": extractor.state_dict()}, state)
    _load(extractor, best, load_checkpoint(best, device)[0])
    spent = {"train_seconds": round(state["seconds"], 3)} | {name: state.get(name, []) for name in NOTES}
    return {**(state["best"] or {}), **spent}


def _batch_sizes(images: int, batch: int) -> list[int]:
    """The sizes of an epoch's batches: a last one of one image, which has no statistics, joins the one before."""
    sizes = [min(batch, images - first) for first in range(0, images, batch)]
    if len(sizes) > 1 and sizes[-1] == 1 < batch:
        sizes[-2:] = [batch + 1]
    return sizes


def _loss(extractor: nn.Module, x: torch.Tensor, labels: torch.Tensor, precision: str) -> torch.Tensor:
    """The mean cross-entropy of a batch: float32, after a forward of which `precision` says how it multiplies."""
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = extractor(x)
    return F.cross_entropy(logits.float(), labels)


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
    sampler = validation_sampler(features, settings)
    learner = Nearest(Identity(features.shape, settings["way"]), reference="mean")
    return float(
        score_episodes(learner, {}, {}, sampler, settings["episodes"], setting="inductive", engine=Engine()).mean()
    )


def validation_sampler(bank: Bank, settings: Mapping[str, Any]) -> Sampler:
    try:
        return Sampler(bank, settings["way"], settings["shot"], settings["query"], settings["seed"])
    except TaskSizeError as error:
        keys = "features.settings.way, features.settings.shot and features.settings.query"
        raise TaskSizeError(f"validation of the extractor: {error}; here these are {keys}") from error
