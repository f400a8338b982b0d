"""Paths as people write them: with `~`, with environment variables, or relative to the working directory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fewshot.core.errors import FewshotError

VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
HOME = re.compile(r"(?<=[=,'\"\[])~[\w.-]*(?=[/,'\"\]]|$)", re.ASCII)  # `~` or `~user` where a value begins
# Keys of a configuration whose values are paths, at any depth.
PATH_KEYS = ("data_dir", "runs", "run_dir", "copy_records_to", "root", "cache", "csv", "folder")


def expand_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` replaced; a path that exists as it is written stays so.

    Raises:
        FewshotError: there is no such user or variable.
    """
    return Path(_expand(os.fspath(path)))


def _expand(text: str) -> str:
    if "$" in text and not os.path.lexists(text):
        text = VARIABLE.sub(lambda match: _variable(match[1] or match[2], text), text)
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded == text and not os.path.lexists(text):
        user = text.split("/")[0]
        raise FewshotError(f"{text}: there is no user {user[1:]}; for a file of this name write its whole path")
    return expanded


def _variable(name: str, text: str) -> str:
    if name not in os.environ:
        raise FewshotError(f"{text}: the environment variable {name} is not defined; define it, or write the path out")
    return os.environ[name]


def expand_home(word: str) -> str:
    """A word of the command line, `key=~/data` or `key=~/a,~/b`, with the home folders in place of each `~`.

    Hydra's grammar has no `~` in a value that is not quoted.
    """
    return HOME.sub(lambda match: os.path.expanduser(match[0]), word)


def expand_configuration(cfg: DictConfig) -> None:
    """Replace `~`, `~user`, `$NAME` and `${NAME}` in every text of a composed configuration, whatever its key.

    `${name}` stays an interpolation where the configuration has a key of this name.

    Raises:
        FewshotError: there is no such user or variable; the message names the key.
    """
    _expand_node(cfg, set(map(str, cfg)))


def _expand_node(node: DictConfig | ListConfig, keys: set[str]) -> None:
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        child: Any = node._get_node(key)  # as it is written, not what it refers to
        if child is None or child._is_none() or child._is_missing():
            continue
        if isinstance(child, DictConfig | ListConfig) and not child._is_interpolation():
            _expand_node(child, keys)
            continue
        try:
            if isinstance(raw := child._value(), str) and "${" in raw:
                node[key] = VARIABLE.sub(lambda m: m[0] if not m[2] or m[2] in keys else _variable(m[2], m[0]), raw)
            if isinstance(text := node[key], str) and (expanded := _expand(text)) != text:
                node[key] = expanded
        except FewshotError as error:
            raise FewshotError(f"{child._get_full_key(None)}: {error}") from error
        except OmegaConfBaseException:
            continue  # an interpolation that leads nowhere is said where it is used


def _expand_key(key: str, *, _root_: DictConfig) -> str:
    """What `${expanded:runs}` in a file of conf/ stands for: the path at a key, for Hydra's own folders."""
    part = OmegaConf.create({key: _root_._get_node(key)})
    expand_configuration(part)
    return part[key]


OmegaConf.register_new_resolver("expanded", _expand_key, replace=True)


def absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain configuration that means the same in any working directory: its relative paths made absolute."""

    def absolute(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return absolute_paths(value)
        # A list may be relative to the images that it is of.
        if key in PATH_KEYS and isinstance(value, str) and (key != "csv" or Path(value).exists()):
            return str(Path(value).absolute())
        return value

    return {key: absolute(key, value) for key, value in config.items()}
