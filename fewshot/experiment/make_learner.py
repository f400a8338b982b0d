"""From a configuration to the learner that it names, and to whatever else has a `_target_`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig
from torch import nn

from fewshot.algorithms.learner import Learner
from fewshot.backbones.module import fit_network
from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError, ImageShapeError, one_line
from fewshot.core.random import seeded

FEATURES = 64  # their number where it is not known yet; any will do
NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


def make_learner(cfg: DictConfig, shape: tuple[int, ...], way: int, device: torch.device) -> Learner:
    """The learner of a configuration on the device, with the initialisation of its seed.

    What is not trained, such as the network of `Nearest`, is in no checkpoint and follows from the seed alone.

    Raises:
        FewshotError: as `make_network` and `instantiate_node`.
    """
    with seeded(cfg.seed):
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
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise FewshotError(
            f"backbone.network._target_={node._target_}: {one_line(error)}; name what can be imported, and put its "
            "folder on PYTHONPATH"
        ) from error
    try:
        accepted = inspect.signature(target).parameters
    except (ValueError, TypeError) as error:
        raise FewshotError(
            f"backbone.network._target_={node._target_}: {one_line(error)}; name a class or function that makes an "
            "nn.Module"
        ) from error
    arguments: dict[str, Any] = {k: v for k, v in {"shape": shape, "way": way}.items() if k in accepted}
    needed = [
        p.name
        for p in accepted.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if lacking := [key for key in needed if key not in arguments and key not in node]:
        words = " ".join(f"'+backbone.network.{key}={'${way}' if 'class' in key else '<value>'}'" for key in lacking)
        raise FewshotError(f"backbone: {name} needs {' and '.join(lacking)}; add {words}")
    network = instantiate_node(node, **arguments)
    if not isinstance(network, nn.Module):
        raise FewshotError(
            f"backbone.network._target_={node._target_}: makes a {type(network).__name__}, and an nn.Module is wanted"
        )
    choices: dict[str, Any] = {key: backbone[key] for key in ("outputs", "norm", "frozen") if key in backbone}
    return fit_network(network, shape, way, **choices) if choices else network


def check_takes_features(cfg: DictConfig) -> None:
    """Raises FewshotError if the backbone takes images; called before an extractor trains. Own networks are trusted."""
    if not str(cfg.backbone.network._target_).startswith("fewshot."):
        return
    try:
        with seeded(cfg.seed):
            make_network(cfg.backbone, (FEATURES,), cfg.way)
    except ImageShapeError as error:
        raise FewshotError(
            f"backbone {cfg.backbone.name} takes images, not {cfg.features.name} features; choose "
            "backbone=mlp or linear, or features.role=start, by which the network begins as their extractor"
        ) from error


def make_extractor(cfg: DictConfig, shape: tuple[int, ...], way: int) -> nn.Module:
    """The untrained network of `features`, a classifier of `way` classes. Raises FewshotError: it cannot be made."""
    return instantiate_node(cfg.features.reader.network, _partial_=False, shape=shape, way=way)


def instantiate_node(node: DictConfig, **kwargs: Any) -> Any:
    """What a configuration node names by its `_target_`, made with the values of the node and `kwargs`.

    Raises:
        FewshotError: it cannot be made, for whatever reason.
    """
    check_types(node)
    try:
        return instantiate(node, **{"_convert_": node.get("_convert_", "all")} | kwargs)  # lists of Python
    except InstantiationException as error:
        if isinstance(error.__cause__, FewshotError):
            raise error.__cause__ from error.__cause__.__cause__
        first, *more = str(error.__cause__ or error).splitlines()
        reason = f"{first} {more[0]}" if first.endswith(":") and more else first  # of an import, the cause comes second
        module, _, name = str(node._target_).rpartition(".")
        if f"{module!r} is not a package" in reason:
            reason = f"{module} has no {name}{did_you_mean(name, dir(import_module(module)))}"
        remedy = "; put the folder of your module on PYTHONPATH" if "No module named" in reason else ""
        raise FewshotError(f"{node._target_}: {reason}{remedy}") from error


def check_types(node: DictConfig) -> None:
    """Check the values of a node where the type hints of what it names say a number, true or false, or a list of these.

    Raises:
        FewshotError: a value is of another type.
    """
    try:
        target = get_object(str(node._target_))
        called = target.__init__ if inspect.isclass(target) else target
        parameters = inspect.signature(called).parameters
        wrong = [
            (key, "null" if node[key] is None else node[key], _in_words(hint))
            for key, hint in get_type_hints(called).items()
            if key in node
            and not _is_of(node[key], hint)
            and not (node[key] is None and parameters[key].default is None)
        ]
    except Exception:  # what cannot be imported or resolved is said where it is made; hints are a person's own
        return
    for key, value, words in wrong:
        raise FewshotError(f"{node._get_full_key(key)}={value}: must be {words}")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration is of a type; True of all types but those of `check_types`."""
    parts, origin = get_args(hint), get_origin(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in parts)
    if hint is type(None):
        return value is None
    if isinstance(value, DictConfig):  # of what Hydra makes the value
        return True
    if parts and origin in (list, Sequence) and parts[0] in NUMBERS:
        return isinstance(value, ListConfig) and all(_is_of(each, parts[0]) for each in value)
    if not any(hint is kind for kind in NUMBERS):
        return True
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and isinstance(value, bool) == (hint is bool)


def _in_words(hint: Any) -> str:
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if part is type(None) else _in_words(part) for part in parts)
    return NUMBERS[hint] if hint in NUMBERS else f"a list, each {NUMBERS[parts[0]]}"
