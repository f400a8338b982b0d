"""A network that begins with the weights of a classifier of the training classes: `features.role=start`."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from fewshot.backbones.norm import replace_batch_norms
from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.experiment.build import Experiment
from fewshot.experiment.config import resolved
from fewshot.experiment.make_learner import instantiate_node
from fewshot.training.features import load_extractor
from fewshot.training.loop import is_trained

HEAD = "head."  # what the names of the last layer begin with, which stays as the learner's network has it
# Settings in which the two networks may differ: they are of norms, initialisations and regularisation.
FREE = ("norm", "norm_eps", "adapt_norm", "conv_init", "head_init", "drop_rate", "drop_block", "dropout")


def load_start(run: Experiment, *, may_train: bool) -> dict[str, Any]:
    """Give the learner's network the weights of the extractor of `features`; its head stays.

    The extractor is trained where it is not there yet. Its norms hand on their scales and offsets, not their averages.

    Args:
        may_train: False for a run that has begun: if its extractor is gone, it must not be made anew.

    Returns:
        What is known of the extractor: name, validation_accuracy, epoch, train_seconds, fingerprint and more.

    Raises:
        FewshotError: the learner is not trained, the two networks differ, or as `features` and `load_extractor`.
    """
    cfg, network = run.cfg, run.learner.backbone
    if not is_trained(run.learner, run.training):
        raise FewshotError(
            f"features.role=start: algorithm={cfg.algorithm.name} is not trained from there; leave the role out"
        )
    _check_alike(cfg)
    extractor = instantiate_node(cfg.features.reader.network)(shape=run.shape, way=len(run.sources["train"].names))
    _pair_weights(extractor, network)  # what does not fit costs no training
    about = instantiate_node(cfg.features.reader, device=cfg.device, may_train=may_train)["train"].metadata
    load_extractor(extractor, expand_path(cfg.features.reader.cache), about)
    with torch.no_grad():
        for learned, own in _pair_weights(extractor, network):
            own.copy_(learned)
    return dict(about["extractor"])


def _check_alike(cfg: DictConfig) -> None:
    """Raises FewshotError where the two networks are set to compute different things."""
    own, learned = resolved(cfg)["backbone"]["network"], resolved(cfg)["features"]["network"]
    for key in (*own, *learned):
        if key not in (*FREE, "_partial_") and own.get(key) != learned.get(key):
            raise FewshotError(
                f"features.role=start: backbone.network.{key}={own.get(key)} and features.network.{key}="
                f"{learned.get(key)}, but the weights go from the one network into the other; set both alike"
            )


def _pair_weights(extractor: nn.Module, network: nn.Module) -> list[tuple[torch.Tensor, nn.Parameter]]:
    """The weights of the extractor, each with the parameter of the network that takes it.

    Raises:
        FewshotError: a parameter of the network has no such weights, or is not trained, so that no checkpoint keeps it.
    """
    learned = replace_batch_norms(deepcopy(extractor), "batch").state_dict()
    pairs = []
    for name, own in network.named_parameters():
        if name.startswith(HEAD):
            continue
        if name not in learned or learned[name].shape != own.shape:
            raise FewshotError(
                f"features.role=start: the extractor has nothing for {name} {tuple(own.shape)} of the backbone; take "
                "the same network for both"
            )
        if not own.requires_grad:
            raise FewshotError(f"features.role=start: {name} of the backbone is frozen; leave backbone.frozen out")
        pairs.append((learned[name], own))
    return pairs
