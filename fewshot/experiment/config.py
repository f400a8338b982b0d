"""The configuration: the types of its settings, what it is filled with, its hash, and the recipes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
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
from fewshot.core.paths import CONF, UNHASHED_KEYS

# Types of the settings that are null in conf/<tool>.yaml; all others have the type of their value there.
NULLABLE: dict[str, tuple[str, ...]] = {
    "int": ("task_chunk", "way", "shot", "query", "episodes", "episode_seed", "latents"),
    "float": ("outer_lr_end", "clip", "clip_norm"),
    "bool": ("transductive",),
    "str": (
        "recipe", "root", "run_dir", "resume", "copy_records_to", "split", "rotations", "checkpoint", "engine", "out",
        "export_leo_format", "source", "sheet", "refresh", "pictures", "title", "metric",
    ),
    "list": ("engines", "algorithms", "datasets", "sources"),
}  # fmt: skip
NODES: dict[str, Callable[..., ValueNode]] = {
    "int": IntegerNode,
    "float": FloatNode,
    "bool": BooleanNode,
    "str": StringNode,
}
TOOLS = ("train", "evaluate", "pretrain", "prepare", "table", "report", "bench")


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

DEFAULT_RECIPE = "ours"  # for combinations that are in no paper
GROUP_PARTS = {"algorithm": "learner", "dataset": "reader", "features": "reader", "backbone": "network"}
UNHASHED_READER_KEYS = ("root", "cache", "download", "device")
READER_FILES = ("csv", "folder")  # files that their name identifies, in whatever folder


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
        raise FewshotError(f"configuration: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def is_regression(dataset: Mapping[str, Any] | DictConfig) -> bool:
    """Whether a dataset, `dataset` of a configuration, is a distribution over functions, and not images."""
    return "families" in dataset["reader"]


def check_groups(cfg: DictConfig) -> None:
    """Check that each group has a name that is text, and a node with a `_target_`.

    Raises:
        FewshotError: one of them is a number or a text instead.
    """
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


def complete(cfg: DictConfig, overrides: Iterable[str]) -> str:
    """Fill in the values that Hydra does not compose: those of the images' view, and those of the recipe.

    Returns:
        A line that names the recipe and says how many settings it made; empty if there is no recipe.

    Raises:
        FewshotError: as `apply_recipe`.
    """
    dataset = cfg.get("dataset")
    if dataset is not None and "reader" in dataset and not is_regression(dataset):
        cfg.dataset = OmegaConf.merge(OmegaConf.load(CONF / "dataset/base/view.yaml"), dataset)
    if "recipe" not in cfg or cfg.resume:  # a resumed run has all in its own configuration
        return ""
    count = apply_recipe(cfg, overrides)
    return f"recipe {cfg.recipe}: {count} settings; see --cfg job" if count else ""


def config_hash(config: Mapping[str, Any], *, without: Iterable[str] = ()) -> str:
    """Hash of everything that the result of a run depends on; `without` leaves further keys out."""
    kept = _without_paths({key: value for key, value in config.items() if key not in (*UNHASHED_KEYS, *without)})
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _without_paths(value: Any) -> Any:
    """A value without the places of a reader's files and without nulls, at any depth."""
    if not isinstance(value, Mapping):
        return value
    kept = {
        k: _without_paths(inner) for k, inner in value.items() if k not in UNHASHED_READER_KEYS and inner is not None
    }
    return kept | {k: Path(kept[k]).name for k in READER_FILES if isinstance(kept.get(k), str)}


def trained_with(config: Mapping[str, Any]) -> str:
    """Hash of everything that the training depends on, except its seed. A table may average runs that share it."""
    return config_hash(config, without=("seed", "query", "test", "engine", "task_chunk"))


def apply_recipe(cfg: DictConfig, overrides: Iterable[str]) -> int:
    """Fill in the published settings for this algorithm, dataset, way and shot; what `overrides` sets stays.

    Recipes are files in conf/recipes: `rows` of conditions (`when`) and values (`set`), each row over the ones before
    it, and `inputs` (images or features), a condition of all rows. `auto` takes the recipe of the algorithm's paper or,
    if that has none for this combination, `ours`. `cfg.recipe` becomes the name of the recipe, or None.

    Returns:
        How many settings it made.

    Raises:
        FewshotError: the recipe that is named does not exist, or has nothing for this combination.
    """
    if cfg.recipe in (None, "none"):
        cfg.recipe = None
        return 0
    auto = cfg.recipe == "auto"
    files = sorted(path.stem for path in (CONF / "recipes").glob("*.yaml"))
    if not auto and cfg.recipe not in files:
        raise FewshotError(
            f"recipe={cfg.recipe}: no such recipe{did_you_mean(cfg.recipe, files)}; there are {', '.join(files)}"
        )
    task = {"algorithm": cfg.algorithm.name, "dataset": cfg.dataset.name, "way": cfg.way, "shot": cfg.shot}
    # Settings for images are meaningless for features, and the other way round.
    task |= {"backbone": cfg.backbone.name, "inputs": "images" if cfg.features.name is None else "features"}
    names = [name for name in (cfg.algorithm.get("recipe"), DEFAULT_RECIPE) if name in files] if auto else [cfg.recipe]
    rows_by_name = {name: _rows(name, task) for name in names}
    name = next((name for name, rows in rows_by_name.items() if rows), None)
    if name is None:
        if auto:
            cfg.recipe = None
            return 0
        task["features"] = cfg.features.name
        combination = ", ".join(f"{key}={value}" for key, value in task.items() if key != "inputs")
        raise FewshotError(
            f"recipe={cfg.recipe}: has no settings for {combination}; leave recipe out or set recipe=none"
        )
    # An override such as algorithm=maml chooses a file; it sets no single value.
    overridden = {override.lstrip("+~").split("=")[0] for override in overrides} - set(GROUP_PARTS)
    count = 0
    for key, value in {key: value for row in rows_by_name[name] for key, value in row["set"].items()}.items():
        # A backbone has only some of the settings: an MLP has no filters.
        exists = not key.startswith("backbone.") or key.rsplit(".", 1)[1] in cfg.backbone.network
        if exists and not any(key == k or key.startswith(f"{k}.") for k in overridden):
            OmegaConf.update(cfg, key, value, merge=True)
            count += 1
    cfg.recipe = name
    return count


def _rows(name: str, task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a recipe that apply to this task."""
    # Not resolved: an interpolation such as ${shot} refers to the configuration that takes the value.
    recipe: Any = OmegaConf.to_container(OmegaConf.load(CONF / "recipes" / f"{name}.yaml"), resolve=False)
    common = {"inputs": recipe["inputs"]} if "inputs" in recipe else {}

    def applies(conditions: Mapping[str, Any]) -> bool:
        return all(task[key] in (value if isinstance(value, list) else [value]) for key, value in conditions.items())

    return [row for row in recipe["rows"] if applies(common | row["when"])]


def given_overrides() -> list[str]:
    """The overrides on the command line of the running tool, as they were written."""
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(overrides)


def key_names(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    names = []
    for key in cfg:
        names.append(f"{prefix}{key}")
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            names.extend(key_names(node, f"{prefix}{key}."))
    return names
