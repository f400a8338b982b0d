"""From a configuration to the learner that it names, and to whatever else has a `_target_`."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from fewshot.algorithms.learner import Learner
from fewshot.backbones.module import fit_network
from fewshot.core.errors import FewshotError, one_line


def make_learner(cfg: DictConfig, shape: tuple[int, ...], way: int, device: torch.device) -> Learner:
    """The learner of a configuration on the device, with the initialisation of its seed.

    What is not trained, such as the network of `Nearest`, is in no checkpoint and follows from the seed alone.

    Raises:
        FewshotError: as `make_network` and `instantiate_node`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        network = make_network(cfg.backbone, shape, way)
        return instantiate_node(cfg.algorithm.learner, backbone=network.to(device))


def make_network(backbone: DictConfig, shape: tuple[int, ...], way: int) -> nn.Module:
    """The network of `backbone`. It gets `shape`, of one example, and `way` if it has such arguments.

    Raises:
        FewshotError: it cannot be made, or is no nn.Module; as `fit_network`.
    """
    node = backbone.network
    module, _, name = str(node._target_).rpartition(".")
    try:
        accepted = inspect.signature(getattr(import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise FewshotError(
            f"backbone.network._target_={node._target_}: {one_line(error)}; name what can be imported, and put its "
            "folder on PYTHONPATH"
        ) from error
    given: dict[str, Any] = {k: v for k, v in {"shape": shape, "way": way}.items() if k in accepted}
    needed = [
        p.name
        for p in accepted.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if lacking := [key for key in needed if key not in given and key not in node]:
        words = " ".join(f"'+backbone.network.{key}={'${way}' if 'class' in key else '<value>'}'" for key in lacking)
        raise FewshotError(f"backbone: {name} needs {' and '.join(lacking)}; add {words}")
    network = instantiate_node(node, **given)
    if not isinstance(network, nn.Module):
        raise FewshotError(
            f"backbone.network._target_={node._target_}: makes a {type(network).__name__}, and an nn.Module is wanted"
        )
    choices: dict[str, Any] = {key: backbone[key] for key in ("outputs", "norm", "frozen") if key in backbone}
    return fit_network(network, shape, way, **choices) if choices else network


def make_extractor(cfg: DictConfig, shape: tuple[int, ...], way: int) -> nn.Module:
    """The untrained network of `features`, a classifier of `way` classes. Raises FewshotError: it cannot be made."""
    return instantiate_node(cfg.features.reader.network, _partial_=False, shape=shape, way=way)


def instantiate_node(node: DictConfig, **kwargs: Any) -> Any:
    """What a configuration node names by its `_target_`, made with the values of the node and `kwargs`.

    Raises:
        FewshotError: it cannot be made, for whatever reason.
    """
    try:
        return instantiate(node, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, FewshotError):
            raise error.__cause__ from error.__cause__.__cause__
        first, *more = str(error.__cause__ or error).splitlines()
        reason = f"{first} {more[0]}" if first.endswith(":") and more else first  # of an import, the cause comes second
        remedy = "; put the folder of your module on PYTHONPATH" if "No module named" in reason else ""
        raise FewshotError(f"{node._target_}: {reason}{remedy}") from error
