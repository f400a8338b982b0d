"""The flags of a command line, and Hydra opened as they say."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF

COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")


def parse_flags(words: list[str]) -> argparse.Namespace:
    """Hydra's flags and, as `overrides`, the other arguments, in any order.

    Raises:
        FewshotError: an unknown flag, one of Hydra's that has no use here, a flag without its value, or flags that
            exclude each other.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise FewshotError(f"command line: {message}")

    parser.error = refuse  # pyright: ignore[reportAttributeAccessIssue]
    for word in words:
        if not word.isascii() and re.search("[\ud800-\udfff]", word):
            encoding = sys.getfilesystemencoding()
            raise FewshotError(f"{word}: no text in {encoding}; set LC_ALL=C.UTF-8, or rename the file or folder")
    flags, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        useless = ("config_path", "experimental_rerun")
        known = [name for action in parser._actions for name in action.option_strings if action.dest not in useless]
        setting = unknown[0].lstrip("-")
        hint = did_you_mean(unknown[0].split("=")[0], known)
        raise FewshotError(
            f"{unknown[0]}: no such flag{hint or ';'} a setting is written without dashes: "
            f"{setting if '=' in setting else f'{setting}=<value>'}"
        )
    if flags.config_path is not None:
        raise FewshotError(f"--config-path: has no use here; --config-dir=<folder> adds settings of yours to {CONF}")
    if flags.experimental_rerun is not None:
        raise FewshotError("--experimental-rerun: has no use here; tools/train.py resume=<run folder> continues a run")
    if flags.cfg and flags.multirun:
        raise FewshotError("--cfg: shows one run; leave out -m, and give one value for each key")
    if sum(getattr(flags, name) not in (None, False) for name in COMMANDS) > 1:
        raise FewshotError("command line: --run, --multirun, --cfg, --info and --shell-completion exclude each other")
    if flags.resolve and flags.cfg is None and not flags.help:
        raise FewshotError("--resolve: goes with --cfg or --help")
    return flags


class ToolHydra(Hydra):
    """Hydra whose `--help` lists only the groups that the tool's defaults list lets a person choose from."""

    def get_help(self, help_cfg: DictConfig, cfg: DictConfig, *args: Any, **kwargs: Any) -> str:
        choices = HydraConfig.get().runtime.choices
        several = {"protocol"} & set(cfg)  # of which a person may choose several: Hydra does not list their choices
        self._groups = {str(group) for group in choices if "@" not in str(group)} | several
        return super().get_help(help_cfg, cfg, *args, **kwargs)

    def list_all_config_groups(self, parent: str = "") -> list[str]:
        return sorted(self._groups) if hasattr(self, "_groups") else list(super().list_all_config_groups(parent))


def open_hydra(flags: argparse.Namespace, name: str) -> Hydra:
    """Hydra that reads conf/, and the folder of `--config-dir` too.

    Raises:
        FewshotError: the folder is not there.
    """
    search_path = create_config_search_path(str(CONF))
    assert isinstance(search_path, ConfigSearchPathImpl)
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).absolute()
        if not folder.is_dir():
            raise FewshotError(f"--config-dir={flags.config_dir}: no such folder")
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return ToolHydra.create_main_hydra2(task_name=name, config_search_path=search_path)


def has_sweep_mode(flags: argparse.Namespace, hydra: Hydra, config: str) -> bool:
    """Whether the configuration asks for a sweep by `hydra.mode`, as the files of conf/experiment do."""
    chosen = any(word.lstrip("+").startswith(("hydra.mode", "experiment")) for word in flags.overrides)
    own_files = flags.config_dir or flags.config_name  # which may set it anywhere
    # Asked only then, since it composes the whole configuration.
    return bool(chosen or own_files) and hydra.get_mode(config, flags.overrides) == RunMode.MULTIRUN
