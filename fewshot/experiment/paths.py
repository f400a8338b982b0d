"""Paths in a configuration: on the command line, composed, and as a run saves them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_text
from fewshot.experiment.config import SAVED_PATH_KEYS, as_saved, is_own

DOLLAR_NAME = re.compile(r"\$([A-Za-z_]\w*)", re.ASCII)  # `${...}` is OmegaConf's
# A quoted text, which stays as it is; or `~` or `~user` at the start of a value.
HOME = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?<=[=,\[])~[\w.-]*(?=[/,\]]|$)""", re.ASCII | re.DOTALL)
# Last parts of the keys whose values are paths, in any tool and at any depth.
PATH_KEYS = (
    *SAVED_PATH_KEYS, "run", "resume", "checkpoint", "source", "sheet", "export_leo_format", "out", "pictures",
    "refresh", "support", "query", "page", "more_runs",
)  # fmt: skip


def is_path_key(key: str) -> bool:
    """Whether the value of a dotted key is a path. `query` is one alone; `train.query` and others are numbers."""
    return key.rsplit(".", 1)[-1] in PATH_KEYS and not key.endswith(".query")


def expand_home(word: str) -> str:
    """Replace each `~` in an argument of the command line, such as `runs=~/data` or `runs=~/a,~/b`.

    Hydra does not accept a `~` in a value without quotes. Only paths, settings of Hydra and flags are changed, and
    nothing in quotes.
    """
    key, equal, value = word.partition("=")
    if not (key.startswith(("-", "hydra.")) or is_path_key(key.lstrip("+"))):
        return word
    return key + HOME.sub(lambda match: os.path.expanduser(match[0]), equal + value)  # a quote begins no home


def literal(text: str) -> str:
    """Escape a text so that a configuration takes it as it is, and no `${` in it as an interpolation."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def expand_configuration(cfg: DictConfig) -> None:
    """Replace `~`, `~user` and `$NAME` in the paths of a composed configuration, the values of PATH_KEYS.

    `${...}` is OmegaConf's: another key, or as `${oc.env:NAME}` a variable, whose value is expanded likewise.

    Raises:
        FewshotError: there is no such user or variable; the message names the key.
    """
    _change_paths(cfg, lambda raw, _: raw if raw.startswith("~${") else expand_text(raw, DOLLAR_NAME, literal))
    _change_paths(cfg, _expand_reference)


def _change_paths(node: Any, change: Callable[[str, Callable[[], Any]], str]) -> None:
    """Apply change(text, resolve) to each text of a path key; `resolve()` gives the value of an interpolation."""
    listed = isinstance(node, ListConfig)  # a list of paths, the only lists that are searched
    for key in range(len(node)) if listed else list(node):
        child: Any = node._get_node(key)  # the text as it is written, not what it refers to
        if child is None or child._is_none() or child._is_missing():
            continue
        if isinstance(child, DictConfig | ListConfig) and not child._is_interpolation():
            if isinstance(child, DictConfig) or listed or key in PATH_KEYS:
                _change_paths(child, change)
            continue
        if not (listed or key in PATH_KEYS) or not isinstance(raw := child._value(), str):
            continue
        try:
            if (changed := change(raw, lambda key=key: node[key])) != raw:
                node[key] = changed
        except FewshotError as error:
            raise FewshotError(f"{child._get_full_key(None)}: {error}") from error
        except OmegaConfBaseException:
            continue  # an interpolation that leads nowhere is reported where it is used


def _expand_reference(raw: str, resolve: Callable[[], Any]) -> str:
    """The expanded value of an interpolation: of a variable, or one that begins with `~`; any other text as it is."""
    if "${" not in raw or not isinstance(text := resolve(), str):
        return raw
    expanded = expand_text(text) if "${oc." in raw or text.startswith("~") else text  # other keys are expanded already
    return raw if expanded == text else literal(expanded)


def _expand_key(key: str, *, _root_: DictConfig) -> str:
    """The value of `${expanded:runs}` in conf/hydra.yaml: the expanded path at a key, "." if there is no such key."""
    if key not in _root_:
        return "."
    copy = OmegaConf.masked_copy(_root_, [str(name) for name in _root_ if name != "hydra"])
    OmegaConf.set_readonly(copy, False)
    expand_configuration(copy)
    return copy[key]


OmegaConf.register_new_resolver("expanded", _expand_key, replace=True)


def absolute_paths(config: Mapping[str, Any], own: bool = False) -> dict[str, Any]:
    """A plain configuration to save: its paths are absolute, and each `${` in a text is escaped.

    So it means the same in any working directory, and is read back as it is.

    Args:
        own: whether these are arguments of a person's own class, see `as_saved`.
    """

    def saved(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return absolute_paths(value, own or is_own(key, value))
        if isinstance(value, list):
            return [saved("", each) for each in value]
        value = as_saved(key, value, own)
        return literal(value) if isinstance(value, str) else value

    return {key: saved(key, value) for key, value in config.items()}
