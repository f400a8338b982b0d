"""The configuration: its typed top level, the recipes of published settings, and near names for a wrong one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF, UNHASHED_KEYS
from fewshot.training.settings import TrainSettings


@dataclass
class TestSettings:
    """The test protocol: which episodes, how many, and who is forwarded with whom."""

    split: str = MISSING
    episodes: int = MISSING
    seed: int = MISSING  # of the episodes
    steps: Any = MISSING  # adaptation steps: a number, several, or None: the learner's own
    transductive: bool = MISSING
    validation_episodes: int = MISSING


@dataclass
class TrainConfig:
    """Types of conf/train.yaml, where the values stand."""

    algorithm: Any = MISSING
    dataset: Any = MISSING
    features: Any = MISSING
    backbone: Any = MISSING
    way: int = MISSING
    shot: int = MISSING
    query: int = MISSING
    seed: int = MISSING
    train: TrainSettings = MISSING
    test: TestSettings = MISSING
    engine: str = MISSING
    task_chunk: int | None = MISSING
    device: str = MISSING
    recipe: str | None = MISSING
    data_dir: str = MISSING
    root: str | None = MISSING
    runs: str = MISSING
    run_dir: str | None = MISSING
    resume: str | None = MISSING
    force: bool = MISSING
    plot: bool = MISSING
    inductive_too: bool = MISSING
    copy_records_to: str | None = MISSING


@dataclass
class EvaluateConfig:
    """Types of conf/evaluate.yaml."""

    run: str = MISSING
    dataset: Any = None
    root: str | None = MISSING
    data_dir: str = MISSING
    split: str | None = MISSING
    way: int | None = MISSING
    shot: int | None = MISSING
    query: int | None = MISSING
    episodes: int | None = MISSING
    episode_seed: int | None = MISSING
    transductive: bool | None = MISSING
    rotations: str | None = MISSING
    steps: Any = MISSING
    checkpoint: str | None = MISSING
    engine: str | None = MISSING
    latents: int | None = MISSING
    plot: bool = MISSING
    device: str = MISSING
    out: str | None = MISSING
    force: bool = MISSING


@dataclass
class PretrainConfig:
    """Types of conf/pretrain.yaml."""

    dataset: Any = MISSING
    features: Any = MISSING
    backbone: Any = MISSING
    export_leo_format: str | None = MISSING
    data_dir: str = MISSING
    device: str = MISSING


@dataclass
class PrepareConfig:
    """Types of conf/prepare.yaml."""

    dataset: Any = MISSING
    source: str | None = MISSING
    check: bool = MISSING
    force: bool = MISSING
    sheet: str | None = MISSING
    data_dir: str = MISSING


@dataclass
class Layout:
    """Types of conf/layout."""

    title: str | None = MISSING
    rows: dict[str, str] = MISSING
    cols: list[str] = MISSING
    algorithms: list[str] | None = MISSING
    datasets: list[str] | None = MISSING
    sources: list[str] | None = MISSING
    metric: str | None = MISSING
    published: Any = MISSING


@dataclass
class TableConfig:
    """Types of conf/table.yaml."""

    layout: Layout = MISSING
    runs: str = MISSING
    format: str = MISSING
    out: str | None = MISSING
    published: Any = MISSING
    cost: Any = MISSING
    rows: Any = MISSING
    cols: Any = MISSING
    refresh: str | None = MISSING


@dataclass
class ReportConfig:
    """Types of conf/report.yaml."""

    layout: Layout = MISSING
    runs: str = MISSING
    out: str | None = MISSING
    pictures: str | None = MISSING
    format: str = MISSING
    published: Any = MISSING
    cost: Any = MISSING
    rows: Any = MISSING
    cols: Any = MISSING


@dataclass
class BenchConfig:
    """Types of conf/bench.yaml."""

    seconds: float = MISSING
    rounds: int = MISSING
    engines: list[str] | None = MISSING
    first_order: list[bool] = MISSING
    device: str = MISSING
    out: str | None = MISSING
    network: str = MISSING
    networks: dict[str, dict[str, Any]] = MISSING


ConfigStore.instance().store(name="prepare_schema", node=PrepareConfig)
ConfigStore.instance().store(name="table_schema", node=TableConfig)
ConfigStore.instance().store(name="report_schema", node=ReportConfig)
ConfigStore.instance().store(name="bench_schema", node=BenchConfig)
ConfigStore.instance().store(name="pretrain_schema", node=PretrainConfig)
ConfigStore.instance().store(name="train_schema", node=TrainConfig)
ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)

DEFAULT_RECIPE = "ours"  # the recipe of what no paper says
NAMED = {"algorithm": "learner", "dataset": "reader", "features": "reader", "backbone": "network"}
UNHASHED_READER_KEYS = ("root", "cache", "download", "device")
READER_FILES = ("csv", "folder")  # of which the name says what they are, wherever they lie


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
    """Whether a dataset, `dataset` of a configuration, is a distribution over functions and not of images."""
    return "families" in dataset["reader"]


def check_groups(cfg: DictConfig) -> None:
    """Hold the groups' names and the classes that they name against what they must be.

    Raises:
        FewshotError: a name is no text, or a number or a text stands where a class and its values belong.
    """
    for group, part in NAMED.items():
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


def fill_view(cfg: DictConfig) -> None:
    """Give a dataset of images what its file does not say of their view: conf/dataset/base/view.yaml."""
    dataset = cfg.get("dataset")
    if dataset is not None and "reader" in dataset and not is_regression(dataset):
        cfg.dataset = OmegaConf.merge(OmegaConf.load(CONF / "dataset/base/view.yaml"), dataset)


def config_hash(config: Mapping[str, Any], *, without: Iterable[str] = ()) -> str:
    """Hash of everything that a run's result depends on; `without` leaves further keys out."""
    kept = _placeless({key: value for key, value in config.items() if key not in (*UNHASHED_KEYS, *without)})
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _placeless(value: Any) -> Any:
    """Without what says where a reader finds and keeps its files, and without what is null, at any depth."""
    if not isinstance(value, Mapping):
        return value
    kept = {k: _placeless(inner) for k, inner in value.items() if k not in UNHASHED_READER_KEYS and inner is not None}
    return kept | {k: Path(kept[k]).name for k in READER_FILES if isinstance(kept.get(k), str)}


def trained_with(config: Mapping[str, Any]) -> str:
    """Hash of what the training depends on but for its seed: what runs that a table may average have in common."""
    return config_hash(config, without=("seed", "query", "test", "engine", "task_chunk"))


def apply_recipe(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Fill in the published settings for this algorithm, dataset, way and shot; what `overrides` names stays.

    `cfg.recipe` becomes the name of the recipe, or None where none has settings for this combination; `auto` takes the
    algorithm's own, and where that has none, `ours`. Recipes are
    files in conf/recipes: their `inputs` (images or features), and `rows` of conditions (`when`) and values (`set`),
    each row over the ones before it.

    Raises:
        FewshotError: the recipe named does not exist or has nothing for this combination.
    """
    if cfg.recipe in (None, "none"):
        cfg.recipe = None
        return
    auto = cfg.recipe == "auto"
    files = sorted(path.stem for path in (CONF / "recipes").glob("*.yaml"))
    if not auto and cfg.recipe not in files:
        raise FewshotError(
            f"recipe={cfg.recipe}: no such recipe{did_you_mean(cfg.recipe, files)}; there are {', '.join(files)}"
        )
    setting = {"algorithm": cfg.algorithm.name, "dataset": cfg.dataset.name, "way": cfg.way, "shot": cfg.shot}
    setting["backbone"] = cfg.backbone.name
    names = [name for name in (cfg.algorithm.get("recipe"), DEFAULT_RECIPE) if name in files] if auto else [cfg.recipe]
    found = {name: _rows(name, setting, cfg.features.name is not None) for name in names}
    name = next((name for name in names if found[name]), None)
    if name is None:
        if auto:
            cfg.recipe = None
            return
        wanted = ", ".join(f"{key}={value}" for key, value in (setting | {"features": cfg.features.name}).items())
        raise FewshotError(f"recipe={cfg.recipe}: has no settings for {wanted}; leave recipe out or set recipe=none")
    # Naming one of these chooses among the configurations; it sets no single value.
    kept = {override.lstrip("+~").split("=")[0] for override in overrides} - {
        "algorithm",
        "dataset",
        "features",
        "backbone",
    }
    for row in found[name]:
        for key, value in row["set"].items():
            # A backbone has only some of the settings: an MLP no filters.
            known = not key.startswith("backbone.") or key.rsplit(".", 1)[1] in cfg.backbone.network
            if known and not any(key == k or key.startswith(f"{k}.") for k in kept):
                OmegaConf.update(cfg, key, value, merge=True)
    cfg.recipe = name


def _rows(name: str, setting: Mapping[str, Any], on_features: bool) -> list[dict[str, Any]]:
    """The rows of a recipe that are for this setting."""
    # Plain values: an interpolation such as ${shot} is to be resolved in the configuration that it lands in.
    recipe: Any = OmegaConf.to_container(OmegaConf.load(CONF / "recipes" / f"{name}.yaml"), resolve=False)
    # Settings for images mean nothing for features of them, and the other way round.
    if (recipe["inputs"] == "features") != on_features:
        return []
    return [row for row in recipe["rows"] if all(setting[k] in _listed(wanted) for k, wanted in row["when"].items())]


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def given_overrides() -> list[str]:
    """The overrides that the running tool was given, as they were written."""
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(words)


def key_names(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    names = []
    for key in cfg:
        names.append(f"{prefix}{key}")
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            names.extend(key_names(node, f"{prefix}{key}."))
    return names
