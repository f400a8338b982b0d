"""The configuration: the types of its settings, its plain values, and its hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import (
    BooleanNode,
    DictConfig,
    FloatNode,
    IntegerNode,
    ListConfig,
    OmegaConf,
    StringNode,
    ValueNode,
)
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.training.settings import LATER_SETTINGS

# Types of the settings that are null in conf/<tool>.yaml; all others have the type of their value there.
NULLABLE: dict[str, tuple[str, ...]] = {
    "int": ("task_chunk", "way", "shot", "query", "latents", "outer_lr_halve_every"),
    "float": ("outer_lr_end", "clip", "clip_norm"),
    "bool": ("invert",),
    "str": (
        "recipe", "root", "run_dir", "resume", "copy_records_to", "checkpoint", "engine", "out",
        "export_leo_format", "source", "sheet", "refresh", "pictures", "page", "title", "metric",
        "method", "data_dir",
    ),
    "list": ("engines", "algorithms", "leave_out", "datasets", "sources", "sweeps"),
}  # fmt: skip
NODES: dict[str, Callable[..., ValueNode]] = {
    "int": IntegerNode,
    "float": FloatNode,
    "bool": BooleanNode,
    "str": StringNode,
}
TOOLS = ("train", "evaluate", "predict", "pretrain", "prepare", "table", "report", "bench")


def typed_settings(tool: str, *, placeholders: bool = False) -> DictConfig:
    """The settings of conf/<tool>.yaml, which from then on take only values of their types.

    Args:
        placeholders: put 0 or "" in place of null, for Hydra, which otherwise loses the types of nulls when it merges.
            The file itself is merged over them.
    """
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{tool}.yaml"))
    if any(isinstance(choice, dict) and "layout" in choice for choice in settings.pop("defaults")):
        every_layout: Any = OmegaConf.to_container(OmegaConf.load(CONF / "layout/base/all.yaml"))
        settings["layout"] = {"rows": {}} | every_layout
    return _typed(settings, placeholders)


def _typed(settings: Mapping[str, Any], placeholders: bool) -> DictConfig:
    nodes: dict[str, Any] = {}
    for key, value in settings.items():
        kind = next((kind for kind, names in NULLABLE.items() if key in names), None) if value is None else None
        kind = kind or type(value).__name__
        optional = value is None or key in NULLABLE["str"]
        if isinstance(value, Mapping):
            nodes[key] = _typed(value, placeholders)
        elif kind == "list" and value is not None:
            nodes[key] = ListConfig(value, ref_type=list[Any])
        elif kind in NODES and not (isinstance(value, str) and "${" in value):
            empty = {"int": 0, "float": 0.0, "bool": False, "str": ""}[kind]
            nodes[key] = NODES[kind](empty if value is None and placeholders else value, is_optional=optional)
        else:
            nodes[key] = value
    return DictConfig(nodes, ref_type=dict[str, Any], is_optional=False)


for tool in TOOLS if CONF.is_dir() else ():
    ConfigStore.instance().store(name=f"{tool}_schema", node=typed_settings(tool, placeholders=True))

GROUP_PARTS = {"algorithm": "learner", "dataset": "reader", "features": "reader", "backbone": "network"}
# Keys that may differ between two configurations of one and the same run.
UNHASHED_KEYS = (
    "protocol", "device", "data_dir", "runs", "run_dir", "resume", "force", "plot", "copy_records_to", "logger",
    "sweeps",
)  # fmt: skip
UNTRAINED_KEYS = ("seed", "engine", "task_chunk")  # in which runs of one training may differ
UNHASHED_READER_KEYS = ("root", "cache", "download", "device", "upright")  # the last shows in the data
# Last parts of the keys whose values are paths and are saved.
SAVED_PATH_KEYS = ("data_dir", "runs", "run_dir", "copy_records_to", "root", "cache", "csv", "folder", "weights")
READER_FILES = ("csv", "folder", "weights")  # files that their name identifies, in whatever folder
# What classes were called when the first runs were made. A hash knows a class by that name: no run changes by a rename.
FIRST_NAMES = {
    "fewshot.MAML": "fewshot.Maml",
    "fewshot.LEO": "fewshot.Leo",
    "fewshot.LEORegression": "fewshot.LeoRegression",
}
# The default recipe of an algorithm when the first runs were made, where it is none today; a hash knows that one.
FIRST_RECIPES = {"nearest_mean": "deepmind"}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, interpolations resolved.

    Raises:
        FewshotError: a value is missing or an interpolation leads nowhere.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except MissingMandatoryValue as error:
        raise FewshotError(f"{error.full_key}: has no value; set {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise FewshotError(f"{error.full_key or 'configuration'}: {first}{hint_at_variable(first)}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def is_regression(dataset: Mapping[str, Any] | DictConfig) -> bool:
    """Whether a dataset, `dataset` of a configuration, is of functions or tables, and not of images."""
    return "families" in dataset["reader"] or "outputs" in dataset["reader"]


def starts_from_extractor(cfg: DictConfig) -> bool:
    """Whether the learner's network begins with the weights of the extractor of `features`, and takes images."""
    return bool(cfg.features.get("role") == "start")


def is_on_features(cfg: DictConfig) -> bool:
    """Whether the learner takes features in place of images."""
    return cfg.features.name is not None and not starts_from_extractor(cfg)


def check_groups(cfg: DictConfig) -> None:
    """Check that each group has a name that is text, and a node with a `_target_`, and that there is a `data_dir`.

    Raises:
        FewshotError: one of them is a number or a text instead; or there is no folder of data.
    """
    # Not `in cfg`, which is False of a run that has no value yet. A tool for a run takes the folder of the run.
    if "run" not in list(cfg) and cfg.get("data_dir", "") is None:
        raise FewshotError("data_dir=null: must be a folder; leave it out for data")
    for group, part in GROUP_PARTS.items():
        node = cfg.get(group)
        if node is None:
            continue
        if not isinstance(node, DictConfig):
            raise FewshotError(f"{group}={node}: has parts; choose one of the files in conf/{group}")
        name, named = node.get("name"), node.get(part)
        if not isinstance(name, str | None):
            raise FewshotError(f"{group}.name={name}: must be text; a number is quoted: '{group}.name=\"{name}\"'")
        if part in node and not (isinstance(named, DictConfig) and "_target_" in named):
            raise FewshotError(f"{group}.{part}={named}: has parts, such as {group}.{part}._target_; set one of them")


def check_keys(cfg: DictConfig) -> None:
    """Raises FewshotError for an unknown key in a group of settings of conf/train.yaml, such as train.momentum."""
    known = key_names(typed_settings("train"))
    settings = {key.split(".")[0] for key in known} - {*GROUP_PARTS, "protocol"}
    for key in key_names(cfg):
        if key.split(".")[0] in settings and key not in known:
            raise FewshotError(f"{key}: no such key{did_you_mean(key, known) or '; leave it out'}")


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of everything that the training of a run depends on; nulls and places of files do not count."""
    kept = counted(config)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def training_hash(config: Mapping[str, Any]) -> str:
    """Hash of what two runs of one method agree in, as records have it: without the seed and what may differ."""
    return config_hash({key: value for key, value in config.items() if key not in UNTRAINED_KEYS})


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by dotted keys in which two runs of one method agree: all that count for a hash, but the seed."""
    return dict(flatten(counted(config, UNHASHED_KEYS + UNTRAINED_KEYS)))


def counted(config: Mapping[str, Any], left_out: Collection[str] = UNHASHED_KEYS) -> dict[str, Any]:
    """What counts of a configuration for the identity of a run, without some of its keys."""
    kept = {key: value for key, value in config.items() if key not in left_out}
    algorithm = kept.get("algorithm")
    if isinstance(algorithm, Mapping) and algorithm.get("recipe") == "none" and algorithm.get("name") in FIRST_RECIPES:
        kept["algorithm"] = {**algorithm, "recipe": FIRST_RECIPES[algorithm["name"]]}
    return _without_paths(kept)


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration with their dotted keys."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flatten(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def is_own(key: str, part: Any) -> bool:
    """Whether a part of a configuration is a person's own learner or network, whose arguments may have any names."""
    named = key in ("learner", "network") and isinstance(part, Mapping)
    return named and not str(part.get("_target_")).startswith("fewshot.")


def _without_paths(value: Any, own: bool = False) -> Any:
    """A value without the places of a reader's files and without nulls, at any depth; classes by their first names.

    Later settings at what held before they were there are left out: no run changes by them.

    Args:
        own: whether its keys are arguments of a person's own class. All of these count, and a file by its whole path.
    """
    if isinstance(value, list) and own:
        return [_without_paths(each, own) for each in value]
    if not isinstance(value, Mapping):
        return FIRST_NAMES.get(value, value) if isinstance(value, str) else value
    if own:
        return {k: _without_paths(as_saved(k, inner, own), own) for k, inner in value.items()}
    kept = {
        k: _without_paths(inner, is_own(k, inner))
        for k, inner in value.items()
        if k not in UNHASHED_READER_KEYS and inner is not None and (k, inner) not in LATER_SETTINGS.items()
    }
    return kept | {k: Path(kept[k]).name for k in READER_FILES if isinstance(kept.get(k), str)}


def as_saved(key: str, value: Any, own: bool = False) -> Any:
    """The value of a key as a run saves it: a path is absolute, so that it means the same in any working directory.

    Args:
        own: whether it is an argument of a person's own class. These may have any names, so only a file or folder
            that is there is a path.
    """
    # A CSV file may be relative to the images that it lists, and weights a name of torchvision's.
    may_be_no_path = own or key in ("csv", "weights")
    if key in SAVED_PATH_KEYS and isinstance(value, str) and (not may_be_no_path or Path(value).exists()):
        return str(Path(value).absolute())
    return value


def given_overrides() -> list[str]:
    """The overrides on the command line of the running tool, as they were written."""
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(overrides)


def hint_at_variable(text: str) -> str:
    """How an environment variable is written, for OmegaConf's line on a `${NAME}` that is no key; "" for another."""
    name = re.search(r"Interpolation key '(\w+)' not found", text)
    return f"; an environment variable is ${{oc.env:{name[1]}}}" if name else ""


def wanted_type(text: str) -> str:
    """OmegaConf's line on a value of another type in a person's words; any other line as it is."""
    wrong = re.search(r"could not be converted to (Integer|Float)|is not a valid (bool)", text)
    if not wrong:
        return text
    return f"must be {'a whole number' if wrong[1] == 'Integer' else 'a number' if wrong[1] else 'true or false'}"


def key_names(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    names = []
    for key in cfg:
        names.append(f"{prefix}{key}")
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            names.extend(key_names(node, f"{prefix}{key}."))
    return names
