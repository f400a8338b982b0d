"""The way from a command line to a function, shared by the tools: one line for a person's mistake, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fewshot.config import CONF, key_names, near
from fewshot.device import keep_freed_memory
from fewshot.errors import FewshotError

failures: list[str] = []  # of a sweep's runs, in this process
sweep_records: list[Path] = []  # of its finished runs


def main(function: Callable[[DictConfig], None], config: str) -> None:
    """Run a tool under Hydra: compose `conf/<config>.yaml` with the command line, then call `function`.

    A mistake in the command line or the input is one line on stderr and exit code 1. In a sweep a failed run does
    not end the others; the failed ones are listed at its end.
    """

    def guarded(cfg: DictConfig) -> None:
        try:
            function(cfg)
        except (FewshotError, OmegaConfBaseException, OSError, torch.OutOfMemoryError) as error:
            line = str(error).strip().splitlines()[0]
            if isinstance(error, torch.OutOfMemoryError):
                line = f"out of memory on the GPU: set chunk to fewer tasks at once ({line})"
            print(f"error: {line}", file=sys.stderr)
            failures.append(line)
        except KeyboardInterrupt:
            print("interrupted: the same command, or resume=<run folder>, continues the run", file=sys.stderr)
            sys.exit(130)

    failures.clear()
    sweep_records.clear()
    keep_freed_memory()
    try:
        if not CONF.is_dir():
            raise FewshotError(f"{CONF}: not there; run the tools from a clone, installed with `pip install -e .`")
        sweep = bool({"-m", "--multirun"} & set(sys.argv[1:]))
        check_overrides([a for a in sys.argv[1:] if not a.startswith("-")], config, sweep)
    except FewshotError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    hydra.main(config_path=str(CONF), config_name=config, version_base="1.3")(guarded)()
    if failures:
        sys.exit(1)


def check_overrides(overrides: list[str], config: str, sweep: bool) -> None:
    """Hold the command line against the configuration before Hydra does, to answer in one line with near names.

    Raises:
        FewshotError: an override that is no override, an unknown key, option or type of value.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
        except HydraException as error:
            raise FewshotError(f"command line: {str(error).splitlines()[0]}; write key=value") from error
        singles = []
        for override in parsed:
            if override.is_sweep_override() and not sweep:
                raise FewshotError(f"{override.input_line}: several values are a sweep; add -m")
            options = _options(override.key_or_group)
            values: list[Any] = list(override.sweep_string_iterator()) if override.is_sweep_override() else []
            if not override.is_sweep_override():
                values = [override.get_value_element_as_str()]
            for value in values:
                if options and value not in options:
                    raise FewshotError(
                        f"{override.key_or_group}={value}: no such option{near(str(value), options)}; "
                        f"there are {', '.join(options)}"
                    )
                if override.key_or_group == "dataset" and config != "train" and _of_functions(str(value)):
                    raise FewshotError(
                        f"dataset={value}: functions need no preparation and no extractor; only tools/train.py takes it"
                    )
                if not override.key_or_group.startswith("hydra"):
                    _compose(config, [*singles, f"{override.key_or_group}={value}"], override.key_or_group)
            if values and not override.key_or_group.startswith("hydra"):
                singles.append(f"{override.key_or_group}={values[0]}")
        if sweep:
            _compose_without_sweep(config, [o.input_line or "" for o in parsed if not o.is_sweep_override()])
    GlobalHydra.instance().clear()


def _compose_without_sweep(config: str, overrides: list[str]) -> None:
    """Hydra composes a sweep once without the swept values; where that fails it says a thing no one can act on."""
    try:
        compose(config, [override for override in overrides if not override.startswith("hydra")])
    except HydraException as error:
        raise FewshotError(
            f"{str(error).splitlines()[0]} without what is swept; choose its group for the whole sweep, such as "
            "features=conv4"
        ) from error


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group.isidentifier() else []


def _of_functions(dataset: str) -> bool:
    """Whether a dataset's file also says how to train: what images leave to conf/train.yaml."""
    return (CONF / "dataset" / f"{dataset}.yaml").read_text(encoding="utf-8").startswith("# @package _global_")


def _compose(config: str, overrides: list[str], key: str) -> None:
    try:
        compose(config, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        known = key_names(compose(config, overrides[:-1]))
        if key not in known:
            raise FewshotError(f"{key}: no such key{near(key, known)}") from error
        if "'features/" in str(error) and any(o.startswith("dataset=") and _of_functions(o[8:]) for o in overrides):
            raise FewshotError(
                f"{overrides[-1]}: features are of images; functions are learned by leo_regression"
            ) from error
        cause = error.__cause__ or error
        raise FewshotError(f"{overrides[-1]}: {str(cause).splitlines()[0]}") from error


class SweepTable(Callback):
    """Hydra callback: a sweep ends by printing the comparison table of its runs, and what failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from fewshot.report.record import read_record
        from fewshot.report.table import markdown

        try:
            if sweep_records:
                print(f"\n{markdown([read_record(path) for path in sweep_records])}")
        except FewshotError as error:
            failures.append(str(error))
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
