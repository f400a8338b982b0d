"""Recipes: how papers train, and this project; rows of settings that hold for some tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.experiment.config import (
    FIRST_NAMES,
    flatten,
    is_on_features,
    is_regression,
    key_names,
    starts_from_extractor,
)
from fewshot.experiment.rows import apply_protocols, set_values, settings_of, task_facts
from fewshot.report.traits import WITHOUT_EFFECT

DEFAULT_RECIPE = "ours"  # for combinations that are in no paper
LEARNER = "algorithm.learner."
TRAINING_KEYS = (
    LEARNER,
    "train.",
    "validation.",
    "dataset.",
    "backbone.network.",
    "features.network.",
    "features.settings.",
)
# Of a dataset, how images are changed for tasks; the others say which images there are.
IMAGE_KEYS = {f"dataset.{key}" for key in ("crop", "mean", "std", "augment.episodes", "rotations")}
TEST_KEYS = ("dataset.reader.split",)  # decides which classes are tested
# Settings in which a network and the extractor that it begins with may differ: norms, initialisations, regularisation.
OF_ONE_NETWORK = (
    "norm", "norm_eps", "adapt_norm", "conv_init", "head_init", "drop_rate", "drop_block", "dropout", "_partial_",
)  # fmt: skip


def complete(cfg: DictConfig, overrides: Iterable[str]) -> str:
    """Fill in the values that Hydra does not compose: the images' view, and the rows of the recipe and the protocols.

    Returns:
        A line that names the recipe and says how many settings it made, or that there is none for this training, and
        the line of `apply_protocols`.

    Raises:
        FewshotError: features of a regression; or as `apply_recipe` and `apply_protocols`.
    """
    dataset, overrides = cfg.get("dataset"), list(overrides)
    if dataset is not None and "reader" in dataset and not is_regression(dataset):
        cfg.dataset = OmegaConf.merge(OmegaConf.load(CONF / "dataset/base/view.yaml"), dataset)
    if "recipe" not in cfg or cfg.resume:  # a resumed run has all in its own configuration
        return ""
    if dataset is not None and is_regression(dataset) and cfg.features.name is not None:
        raise FewshotError(f"features: not for a regression, such as {cfg.dataset.name}; leave it out")
    if is_on_features(cfg):
        set_values(cfg, {"dataset.rotations": "none"}, overrides)  # features have none
    asked, count = cfg.recipe, apply_recipe(cfg, overrides)
    if starts_from_extractor(cfg):
        _give_extractor_the_backbone(cfg, overrides)
    lines = [_recipe_line(cfg, asked, count), apply_protocols(cfg, overrides), _test_steps_line(cfg, overrides)]
    return "\n".join(filter(None, lines))


def _test_steps_line(cfg: DictConfig, overrides: list[str]) -> str:
    """A line where the command line sets MAML's inner steps alone, and those of the test are others."""
    steps = {name: OmegaConf.select(cfg, f"{LEARNER}{name}") for name in ("inner_steps", "test_steps")}
    named = [name for name in steps if any(f"{LEARNER}{name}=" in override for override in overrides)]
    if named != ["inner_steps"] or "adapted" not in cfg.algorithm.learner or len(set(steps.values())) == 1:
        return ""
    return (
        f"algorithm.learner.inner_steps={steps['inner_steps']}: of the training alone; the validation, and tests whose "
        f"protocol names no steps, take test_steps={steps['test_steps']}, which you can set too"
    )


def _give_extractor_the_backbone(cfg: DictConfig, overrides: list[str]) -> None:
    """Set the extractor's network as the backbone, where the two are of one class; what `overrides` sets stays."""
    own, learned = cfg.backbone.network, OmegaConf.select(cfg, "features.network")
    if learned is None or learned._target_ != own._target_:
        return
    shared = [key for key in own if key in learned and key not in OF_ONE_NETWORK]
    set_values(cfg, {f"features.network.{key}": own[key] for key in shared}, overrides)


def _recipe_line(cfg: DictConfig, asked: str | None, count: int) -> str:
    """The line that names the recipe, or says that `auto` found none; empty where there is nothing to say.

    Args:
        asked: `recipe` as the command line has it.
        count: the settings that the recipe made.
    """
    steps = f", {cfg.train.steps:,} steps" if cfg.train.steps else ""
    if count:
        return f"recipe {cfg.recipe}: {count} setting{'s' if count > 1 else ''}{steps}; see --cfg job"
    if asked != "auto" or cfg.recipe is not None:
        return ""
    names = [name for name in recipe_names() if _is_ours(name) or not starts_from_extractor(cfg)]
    others = ", ".join(f"recipe={name}" for name in names if _fitting(recipe_settings(name, cfg, alone=True), cfg))
    named = f"; settings for this task: {others}" if others else ""
    by_default = _fitting(recipe_settings(DEFAULT_RECIPE, cfg), cfg) if DEFAULT_RECIPE in names else {}
    added = "".join(f", {key}={by_default[key]}" for key in by_default if OmegaConf.select(cfg, key) == by_default[key])
    return f"recipe none: defaults of algorithm {cfg.algorithm.name}{added}{steps}{named}" if steps or others else ""


def apply_recipe(cfg: DictConfig, overrides: Iterable[str]) -> int:
    """Fill in the published settings for this algorithm, dataset, way and shot; what `overrides` sets stays.

    Recipes are files in conf/recipes: `rows` of conditions (`when`) and values (`set`), each row over the ones before
    it, and `inputs` (images, features, functions or tables), a condition of all rows. `auto` takes the recipe of the
    algorithm's paper or, if that has none for this combination or the network begins with the weights of an extractor,
    `ours`. A row with `alone: false` makes no recipe without another one. `cfg.recipe` becomes the name of the recipe,
    or None.

    Returns:
        How many settings it made.

    Raises:
        FewshotError: the recipe that is named does not exist, has nothing for this combination, or says how to test.
    """
    if cfg.recipe in (None, "none"):
        cfg.recipe = None
        return 0
    auto, files = cfg.recipe == "auto", recipe_names()
    if not auto and cfg.recipe not in files:
        raise FewshotError(
            f"recipe={cfg.recipe}: no such recipe{did_you_mean(cfg.recipe, files) or ';'} there are {', '.join(files)}"
        )
    # What papers say holds for networks that begin at random. What makes no recipe alone is set in any case.
    paper = None if starts_from_extractor(cfg) else cfg.algorithm.get("recipe")
    names = [name for name in (paper, DEFAULT_RECIPE) if name in files] if auto else [cfg.recipe]
    by_name = {name: _fitting(recipe_settings(name, cfg), cfg) for name in names}
    name = next((name for name in names if _fitting(recipe_settings(name, cfg, alone=True), cfg)), None)
    if name is None:
        if auto:
            cfg.recipe = None
            for settings in by_name.values():
                set_values(cfg, settings, overrides)
            return 0
        facts = task_facts(cfg)
        shown = {key: "none" if facts[key] is None else facts[key] for key in facts if key not in ("inputs", "recipe")}
        combination = ", ".join(f"{key} {value}" for key, value in shown.items())
        known = _datasets_of(cfg.recipe, cfg.algorithm.name)
        others = f"it has some for {cfg.algorithm.name} on {' and '.join(known)}; " if known else ""
        raise FewshotError(f"recipe={cfg.recipe}: has no settings for {combination}; {others}leave recipe out")
    cfg.recipe = name
    return set_values(cfg, by_name[name], overrides)


def _datasets_of(recipe: str, algorithm: str) -> list[str]:
    """The datasets that the rows of a recipe name for an algorithm."""

    def named(when: Mapping[str, Any], key: str) -> list[str]:
        return when[key] if isinstance(when.get(key), list) else [when[key]] if key in when else []

    rows = [row["when"] for row in _read_recipe(recipe)["rows"]]
    return sorted({name for when in rows if algorithm in named(when, "algorithm") for name in named(when, "dataset")})


def _fitting(settings: dict[str, Any], cfg: DictConfig) -> dict[str, Any]:
    """The settings without those that the network does not have: an MLP has no filters."""
    network = "backbone.network."
    return {
        key: value
        for key, value in settings.items()
        if not key.startswith(network) or key.removeprefix(network) in cfg.backbone.network
    }


def recipe_names() -> list[str]:
    """The files of conf/recipes."""
    return sorted(path.stem for path in (CONF / "recipes").glob("*.yaml"))


def recipe_settings(name: str, cfg: DictConfig, *, alone: bool = False) -> dict[str, Any]:
    """What a recipe sets for the task of a configuration; empty if it has nothing for it.

    Args:
        alone: leave out the rows that make no recipe alone.

    Raises:
        FewshotError: it sets a key that says how to test.
    """
    recipe = _read_recipe(name)
    common = {"inputs": recipe["inputs"]} if "inputs" in recipe else {}
    for row in recipe["rows"]:
        for key in row["set"]:
            if not key.startswith(TRAINING_KEYS) or any(f"{test}.".startswith(f"{key}.") for test in TEST_KEYS):
                raise FewshotError(
                    f"recipe={name}: sets {key}; a recipe says how to train; move it to a file of conf/protocol"
                )
    rows = [row for row in recipe["rows"] if row.get("alone", True) or not alone]
    return settings_of(rows, task_facts(cfg) | {"recipe": None}, common)


def recipe_changes(cfg: DictConfig) -> list[str]:
    """The keys of a configuration that have another value than its recipe sets.

    What the recipe leaves to the files of conf is held against these: of the training, the backbone, the dataset's
    images and the algorithm. Without a recipe only the learner's keys are.
    """
    if cfg.recipe in recipe_names():
        settings = _usual_values(cfg) | _fitting(recipe_settings(cfg.recipe, cfg), cfg)
    else:
        usual, there = dict(_values_in("algorithm", cfg.algorithm.name)), key_names(cfg)
        if not recipe_settings(DEFAULT_RECIPE, cfg, alone=True):  # what `recipe=auto` sets where it finds no recipe
            usual |= _fitting(recipe_settings(DEFAULT_RECIPE, cfg), cfg)
        settings = {key: usual[key] for key in usual if key.startswith(LEARNER) and key in there}
    settings = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    with_values, with_references = cfg.copy(), cfg.copy()  # such as ${.inner_steps}, which follow what the person set
    usual_in = {key: with_references if "${" in str(value) else with_values for key, value in settings.items()}
    for key, value in settings.items():
        OmegaConf.update(usual_in[key], key, value, merge=True)
    return [key for key in settings if _value_of(usual_in[key], key) != _value_of(cfg, key)]


def _usual_values(cfg: DictConfig) -> dict[str, Any]:
    """What the files of conf set of a training where no recipe does."""
    usual = dict(flatten({key: _parse(CONF / "train.yaml")[key] for key in ("train", "validation")}))
    usual |= _backbone_values(cfg)
    for group in ("dataset", "algorithm"):
        usual |= _values_in(group, cfg[group].name)
    there = set(key_names(cfg)) - ({"dataset.rotations"} if is_on_features(cfg) else set())
    kept = tuple(key for key in TRAINING_KEYS if key != "dataset.")
    return {key: usual[key] for key in usual if key in there and (key.startswith(kept) or key in IMAGE_KEYS)}


def _value_of(cfg: DictConfig, key: str) -> Any:
    """The value of a key, a class by its first name."""
    value = OmegaConf.select(cfg, key)
    return FIRST_NAMES.get(value, value) if isinstance(value, str) else value


def _backbone_values(cfg: DictConfig) -> dict[str, Any]:
    """The values of the file of the backbone: of several with its name, such as mlp and mlp_40, the nearest ones."""
    files = [_values_in("backbone", path.stem) for path in sorted((CONF / "backbone").glob("*.yaml"))]
    named = [values for values in files if values.get("backbone.name") == cfg.backbone.name]
    return min(named, key=lambda values: sum(OmegaConf.select(cfg, key) != values[key] for key in values), default={})


@cache
def _values_in(group: str, name: str) -> dict[str, Any]:
    """The values by dotted keys in a file of conf, over those of the files that it builds on; none without a file.

    Read once in a process; nobody changes them.
    """
    file = CONF / group / f"{name}.yaml"
    if not file.exists():
        return {}
    is_global = file.read_text(encoding="utf-8").startswith("# @package _global_")
    content, prefix = _parse(file), "" if is_global else f"{group}."
    others = [other for other in content.get("defaults", ()) if isinstance(other, str) and other != "_self_"]
    below = [_values_in(group, other.partition("@")[0].removeprefix(f"/{group}/")) for other in others]
    own = dict(flatten({key: value for key, value in content.items() if key != "defaults"}, prefix))
    return {key: value for values in [*below, own] for key, value in values.items()}


def paper_steps(cfg: DictConfig) -> int | None:
    """The outer steps of the paper: of the recipe in use or, if that is ours, of the algorithm's; None: unknown."""
    for name in (cfg.recipe, cfg.algorithm.get("recipe")):
        if name in recipe_names() and not _is_ours(name):
            steps_are_ours = _read_recipe(name).get("steps_are_ours", False)
            return None if steps_are_ours else recipe_settings(name, cfg).get("train.steps")
    return None


def _is_ours(name: str) -> bool:
    """Whether a recipe is of this project, and not of a paper or program."""
    return bool(_read_recipe(name).get("ours", False))


def _read_recipe(name: str) -> dict[str, Any]:
    return _parse(CONF / "recipes" / f"{name}.yaml")


@cache
def _parse(path: Path) -> dict[str, Any]:
    """The content of a file of settings, read once in a process; nobody changes it."""
    # Not resolved: an interpolation such as ${shot} refers to the configuration that takes the value.
    recipe: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return recipe
