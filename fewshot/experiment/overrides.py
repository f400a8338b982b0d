"""Checks of the overrides of a command line, with one line for what is wrong with them."""

from __future__ import annotations

import copy
import re
from contextlib import suppress
from functools import cache, partial
from itertools import product
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import CONF
from fewshot.experiment.config import (
    GROUP_PARTS,
    NULLABLE,
    TOOLS,
    hint_at_variable,
    is_own,
    is_regression,
    key_names,
    typed_settings,
    wanted_type,
)
from fewshot.experiment.parse import typed
from fewshot.experiment.paths import expand_configuration, is_path_key
from fewshot.experiment.sweeps import check_plugin

NEEDED = "is always needed; it can be set, and not deleted"
LARGEST = 2**31 - 1  # of counts and sizes
LARGEST_SEED = 2**63 - 1
SYNONYMS = {"test_steps": "common.steps"}  # what a person may mean by the last part of a key


def _numbers(value: Any) -> list[int]:
    """The whole numbers in a value, a sweep or a list of them."""
    if isinstance(value, RangeSweep | IntervalSweep):
        value = vars(value)
    value = getattr(value, "list", value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, int) else []


def check_overrides(overrides: list[Override], config: str, hydra: Hydra, sweep: bool) -> None:
    """Compose the configuration that Hydra will compose, to report a mistake in one line, with similar names.

    Raises:
        FewshotError: an unknown key, option or type of value, or a plugin that is not installed.
    """
    for override in overrides:
        if override.key_or_group in ("hydra/launcher", "hydra/sweeper"):
            for line in _lines(override):
                check_plugin(override.key_or_group, line.split("=")[-1], sweep)
    _check_sizes(overrides, config, hydra)
    lines = [_lines(override) for override in overrides]
    for override, options in zip(overrides, lines, strict=True):
        if override.key_or_group in (*GROUP_PARTS, "layout"):
            _check_one_option(options)
    first = [options[0] for options in lines]
    cfg = _composed(hydra, config, first, overrides)
    always = key_names(typed_settings(config)) if config in TOOLS else []
    for override in overrides:
        key = override.key_or_group
        if override.is_delete() and key in always:
            raise FewshotError(f"{override.input_line}: {NEEDED}")
    groups = [place for place, override in enumerate(overrides) if _is_group(override, hydra)]
    options_of = [lines[place] if place in groups else lines[place][:1] for place in range(len(lines))]
    if cfg.get("sweeps") or any(override.key_or_group == "hydra/sweeper" for override in overrides):
        # Of an experiment or a search not each pair of options is a run.
        tries = [[*first[:place], line, *first[place + 1 :]] for place in groups for line in lines[place]]
    else:
        tries = [list(chosen) for chosen in product(*options_of)]
    for tried in tries:
        if tried != first:
            _composed(hydra, config, tried, overrides)
    one = copy.deepcopy(cfg)  # for the values of a sweep, one after the other
    for place, options in enumerate(lines):
        override = overrides[place]
        if place not in groups and override.is_sweep_override() and override.package is None:
            for line in options:
                _check_line(line, override, one, config, hydra)
    if sweep:
        _check_common(overrides, config, hydra)
    for override in overrides:
        if not override.is_delete() and not override.is_sweep_override() and override.package is None:
            _check_value(override, cfg)


def _check_one_option(lines: list[str]) -> None:
    """Refuse a list of options of one group, which Hydra would merge into one that bears the last one's name."""
    for line in lines:
        key, _, value = line.partition("=")
        if re.match(r"\[.*,", value):
            raise FewshotError(f"{line}: takes one; several are a sweep: -m {key}={value.strip('[]')}")


def _check_sizes(overrides: list[Override], config: str, hydra: Hydra) -> None:
    """Refuse too large a number for a key of conf/. A path, a key of Hydra and a new key take any number."""
    for override in overrides:
        key = override.key_or_group
        largest = LARGEST_SEED if key.endswith("seed") else LARGEST
        if is_path_key(key) or all(abs(number) <= largest for number in _numbers(override.value())):
            continue
        groups = [_lines(each)[0] for each in overrides if _is_group(each, hydra)]
        try:
            known = key_names(_compose(hydra, config, groups))
        except Exception:  # a mistake in the groups is reported when everything is composed
            continue
        if key in known and not key.startswith("hydra"):
            raise FewshotError(f"{override.input_line}: too large a number; whole ones go from -{largest} to {largest}")


def _check_line(line: str, swept: Override, cfg: DictConfig, config: str, hydra: Hydra) -> None:
    """Check one value of a sweep by setting it in a configuration, much faster than composing another one."""
    override = OverridesParser.create(config_loader=hydra.config_loader).parse_override(line)
    if override.is_add():
        override.type = OverrideType.FORCE_ADD  # the value before this one stands there
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
    except HydraException as error:
        raise FewshotError(_reason(error, swept, line, cfg, config, hydra)) from error
    _check_value(override, cfg)


def _lines(override: Override) -> list[str]:
    """The values of an override, each as an override of one value; of a range or an interval both ends."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    value = override.value()
    if isinstance(value, IntervalSweep):
        values: list[Any] = [value.start, value.end]
    elif isinstance(value, RangeSweep):
        every = list(value.range())
        values = [every[0], every[-1]] if every else []
    else:
        values = list(override.sweep_string_iterator())
    if not values:
        raise FewshotError(f"{override.input_line}: no value")
    return [f"{override.get_key_element()}={value}" for value in values]


def _check_common(overrides: list[Override], config: str, hydra: Hydra) -> None:
    """Check what Hydra composes once for a sweep, without the swept values; its own message would be no help."""
    lines = [override.input_line or "" for override in overrides]
    try:
        _compose(hydra, config, [line for line in lines if not line.startswith("hydra")], RunMode.MULTIRUN)
    except HydraException as error:
        raise FewshotError(
            f"{str(error).splitlines()[0]} without what is swept; choose its group for the whole sweep, such as "
            "features=conv4"
        ) from error
    try:
        _compose(hydra, config, lines, RunMode.MULTIRUN)
    except HydraException as error:
        raise FewshotError(f"command line: {one_line(error)}") from error


def _check_value(override: Override, cfg: DictConfig) -> None:
    """Check that a path is text, a list is a list, and an interpolation leads somewhere."""
    key, given = override.key_or_group, override.value()
    text, own = override.get_value_string(), _is_of_own(key, cfg)
    if key.rsplit(".", 1)[-1] in NULLABLE["list"] and not own and given is not None and not isinstance(given, list):
        raise FewshotError(f"{override.input_line}: must be a list, such as {key}=[{text}]")
    if text == "None":
        raise FewshotError(f"{override.input_line}: None is a text here; for no value type {key}=null")
    if "${hydra:" in text:  # which only a run knows
        return
    if is_path_key(key) and "${" in text:
        expand_configuration(cfg)
    try:
        chosen = OmegaConf.select(cfg, key)
    except (InterpolationResolutionError, OmegaConfBaseException) as error:
        first = str(error).splitlines()[0]
        raise FewshotError(f"{override.input_line}: {wanted_type(first)}{hint_at_variable(first)}") from error
    if is_path_key(key) and not own and given is not None and not isinstance(given, str) and chosen != text:
        raise FewshotError(f"{key}: {text} is no text to Hydra; as a path it is typed {typed(key, text)}")


def _is_of_own(key: str, cfg: DictConfig) -> bool:
    """Whether a key is an argument of a person's own learner or network, which gives names their meaning."""
    part = next((part for part in ("algorithm.learner", "backbone.network") if key.startswith(f"{part}.")), None)
    node = OmegaConf.select(cfg, part) if part else None
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else None
    return part is not None and is_own(part.rpartition(".")[2], plain)


def _compose(hydra: Hydra, config: str, lines: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
    return hydra.compose_config(config_name=config, overrides=lines, run_mode=mode, from_shell=False)


def _composed(hydra: Hydra, config: str, lines: list[str], overrides: list[Override]) -> DictConfig:
    """Compose the configuration. If that fails, report the first override that fails with those before it."""
    try:
        return _compose(hydra, config, lines)
    except Exception as whole:
        try:
            before = _compose(hydra, config, [])
        except (HydraException, OmegaConfBaseException) as error:
            raise FewshotError(f"configuration: {one_line(error.__cause__ or error)}") from error
        pairs = list(zip(overrides, lines, strict=True))
        pairs.sort(key=lambda pair: not _is_group(pair[0], hydra))  # first the groups, which bring keys
        for place, (override, _) in enumerate(pairs):
            tried = [line for _, line in pairs[: place + 1]]
            try:
                before = _compose(hydra, config, tried)
            except Exception as error:
                raise FewshotError(_reason(error, override, tried[-1], before, config, hydra)) from error
        raise FewshotError(f"command line: {one_line(whole.__cause__ or whole)}") from whole


def _is_group(override: Override, hydra: Hydra) -> bool:
    return _has_options(override.key_or_group, hydra)


@cache
def _has_options(name: str, hydra: Hydra) -> bool:
    return bool("." not in name and hydra.config_loader.get_group_options(name, ObjectType.CONFIG))


def _reason(error: Exception, override: Override, line: str, before: DictConfig, config: str, hydra: Hydra) -> str:
    """The message for an override that cannot be composed onto the configuration `before`."""
    key, value = override.key_or_group, line.partition("=")[2]
    if isinstance(error, MissingConfigException):
        missing = str(error.missing_cfg_file or "")
        options = error.options or hydra.config_loader.get_group_options(key, ObjectType.CONFIG)  # none of a list
        if value.startswith("["):
            value = missing.rpartition("/")[2]
        if missing.startswith("features/") and key != "features":
            if _is_of_regression(missing.removeprefix("features/"), hydra):
                learners = "maml, fomaml, reptile and leo_regression"
                return f"{line}: features are of images; a regression is learned by {learners}"
            return (
                f"{line}: wants conf/{missing}.yaml, an extractor for this dataset; write it, or choose features=conv4"
            )
        hint = did_you_mean(value, options) or ";"
        return f"{line}: no such option{hint} there are {', '.join(options)}; your own needs --config-dir=<folder>"
    if key == "dataset" and config != "train" and _is_of_regression(value, hydra):
        return f"dataset={value}: is a regression, which only tools/train.py takes; choose a dataset of images"
    known = [name for name in key_names(before) if key.startswith("hydra") or not name.startswith("hydra")]
    if override.is_delete() and key in known and OmegaConf.select(before, key, throw_on_missing=False) is None:
        return f"{line}: is null already, so there is nothing to delete; leave it out, or set {key}=<value>"
    if "Could not append to config" in str(error):
        return f"{line}: the key is there already; write {line.lstrip('+')}"
    if key not in known and not _is_group(override, hydra):
        last = key.rpartition(".")[2]
        named = [name for name in known if name.endswith((f".{key}", f".{SYNONYMS.get(last, key)}"))]
        hint = f", did you mean {' or '.join(named[:3])}?" if named else ""
        return f"{key}: no such key{hint or _options_with(key, before, config, hydra) or did_you_mean(key, known)}"
    cause = error.__cause__ or error
    if "does not support deletion" in str(cause):
        return f"{line}: {NEEDED}"
    if "is not a ListConfig" in str(cause):
        return f"{line}: must be a list, such as {key}=[{value}]"
    first = str(cause).strip().splitlines()[0]
    return f"{line}: {wanted_type(first) if isinstance(cause, OmegaConfBaseException) else one_line(cause)}"


def _options_with(key: str, before: DictConfig, config: str, hydra: Hydra) -> str:
    """Which options of its group have a key that the chosen one lacks, in words; empty if none has it."""
    group, _, rest = key.partition(".")
    last = f"{rest.rpartition('.')[2]}:"
    if not rest or not any(last in path.read_text(encoding="utf-8") for path in (CONF / group).rglob("*.yaml")):
        return ""
    options, having = partial(hydra.config_loader.get_group_options, results_filter=ObjectType.CONFIG), []
    copies = set(options("dataset") if group == "features" else ())  # features that are named after a dataset
    for name in sorted(set(options(group)) - copies):
        with suppress(HydraException, OmegaConfBaseException):
            having += [f"{group}={name}"] if key in key_names(_compose(hydra, config, [f"{group}={name}"])) else []
    chosen, more = OmegaConf.select(before, f"{group}.name"), " and others" if len(having) > 3 else ""
    where = f"of {group} {chosen}" if chosen else f"without {group}"
    return f" {where}; choose one of {', '.join(having[:3])}{more}" if having else ""


def _is_of_regression(dataset: str, hydra: Hydra) -> bool:
    try:
        return is_regression(_compose(hydra, "train", [f"dataset={dataset}"]).dataset)
    except Exception:  # not a known dataset
        return False
