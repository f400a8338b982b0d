"""A network that begins with the weights of a classifier of the training classes: `features.role=start`."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.algorithms.learner import head_prefix
from fewshot.backbones.norm import replace_batch_norms
from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.experiment.build import Experiment
from fewshot.experiment.config import resolved
from fewshot.experiment.make_learner import instantiate_node, make_extractor
from fewshot.experiment.recipes import OF_ONE_NETWORK
from fewshot.training.features import extractor_folder, load_extractor
from fewshot.training.loop import is_trainable_on


def load_start(run: Experiment) -> dict[str, Any]:
    """Give the learner's network the weights of the extractor of `features`; its last layer, the head, stays.

    A new run trains the extractor where it is not there. Norms take scales and offsets, and no running averages.

    Returns:
        What is known of the extractor: name, validation_accuracy, epoch, train_seconds, fingerprint and more.

    Raises:
        FewshotError: the learner is not trained or has no weights, the two networks differ, the run began with another
            extractor, or as `features` and `load_extractor`.
    """
    cfg, network, began_with = run.cfg, run.learner.backbone, run.start
    if not is_trainable_on(run.learner, run.training):
        raise FewshotError(
            f"features.role=start: algorithm {cfg.algorithm.name} is not meta-trained; leave the role out"
        )
    if not _body(network):
        raise FewshotError(
            f"features.role=start: backbone {cfg.backbone.name} has no weights to begin with; leave the role out"
        )
    _check_alike(cfg)
    if any(isinstance(part, _BatchNorm) for part in network.modules()):
        key = "backbone.norm" if "norm" in cfg.backbone else "backbone.network.norm"
        raise FewshotError(f"features.role=start: takes no running averages from the extractor; set {key}=batch")
    extractor = make_extractor(cfg, run.shape, len(run.sources["train"].names))
    _pair_weights(extractor, network)  # what does not fit costs no training
    banks = instantiate_node(cfg.features.reader, device=cfg.device, may_train=not began_with)
    about = banks["train"].metadata
    cache = expand_path(cfg.features.reader.cache)
    try:
        load_extractor(extractor, cache, about)
    except FewshotError as error:
        if began_with:
            raise
        both = f"{cache / about['folder']} and {extractor_folder(cache, about)}"
        raise FewshotError(
            f"{error}; or delete {both}, and they are made again; then train other runs on these features anew"
        ) from error
    if began_with and began_with["fingerprint"] != about["extractor"]["fingerprint"]:
        raise FewshotError(
            f"{cache / about['folder']}: not the extractor that this run began with; put that one back, or train anew"
        )
    with torch.no_grad():
        for learned, own in _pair_weights(extractor, network):
            own.copy_(learned)
    return dict(about["extractor"])


def _check_alike(cfg: DictConfig) -> None:
    """Raises FewshotError where the two networks are set to compute different things."""
    own, learned = resolved(cfg)["backbone"]["network"], resolved(cfg)["features"]["network"]
    keys = [key for key in {**own, **learned} if key not in OF_ONE_NETWORK and own.get(key) != learned.get(key)]
    if "_target_" in keys:  # networks of two classes have other settings anyway
        names = f"backbone {cfg.backbone.name} and extractor {cfg.features.name}"
        raise FewshotError(
            f"features.role=start: {names} are two networks, but weights go from the one into the other; choose the "
            "same for both, such as backbone=conv4 features=conv4"
        )
    if keys:
        settings = (f"{key}={own.get(key)} and features.network.{key}={learned.get(key)}" for key in keys)
        words = ", ".join(f"backbone.network.{setting}" for setting in settings)
        raise FewshotError(f"features.role=start: {words}, but weights go from the one into the other; set both alike")


def _pair_weights(extractor: nn.Module, network: nn.Module) -> list[tuple[torch.Tensor, nn.Parameter]]:
    """The weights of the extractor, each with the parameter of the network that takes it.

    Raises:
        FewshotError: one of the two has a parameter that the other lacks.
    """
    extractor_body = _body(replace_batch_norms(deepcopy(extractor), "batch"))
    network_body = _body(network)
    for name in (*network_body, *extractor_body):
        shapes = [tuple(body[name].shape) if name in body else "nothing" for body in (network_body, extractor_body)]
        if shapes[0] != shapes[1]:
            raise FewshotError(
                f"features.role=start: {name}: the backbone has {shapes[0]} there, the extractor {shapes[1]}; give "
                "both networks the same layers, with norms or without"
            )
    return [(extractor_body[name], value) for name, value in network_body.items()]


def _body(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a network by name, without those of its last layer."""
    head = head_prefix(network)
    return {name: value for name, value in network.named_parameters() if not (head and name.startswith(head))}
