"""Settings that hold for some tasks: the rows of recipes, which say how to train, and of protocols, how to test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.experiment.config import GROUP_PARTS, flatten, is_on_features, is_regression


def task_facts(cfg: DictConfig) -> dict[str, Any]:
    """What the conditions of rows may ask for."""
    inputs = "features" if is_on_features(cfg) else "images"
    if is_regression(cfg.dataset):
        inputs = "functions" if "families" in cfg.dataset.reader else "tables"
    return {
        "algorithm": cfg.algorithm.name,
        "dataset": cfg.dataset.name,
        "way": cfg.way,
        "shot": cfg.shot,
        "backbone": cfg.backbone.name,
        "features": cfg.features.name,
        "inputs": inputs,
        "recipe": cfg.recipe,
    }


def settings_of(
    rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any], conditions: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """The values of the rows whose conditions the facts meet, each row over the ones before it.

    Args:
        conditions: further ones, of every row.
    """

    def holds(when: Mapping[str, Any]) -> bool:
        return all(facts[key] in (value if isinstance(value, list) else [value]) for key, value in when.items())

    return {key: value for row in rows if holds({**conditions, **row["when"]}) for key, value in row["set"].items()}


def set_values(cfg: DictConfig, values: Mapping[str, Any], overrides: Iterable[str]) -> int:
    """Set dotted keys, but those that overrides of the command line set; returns how many were set."""
    overridden = {key for override in overrides for key in _keys(override)}
    chosen = {
        key: value
        for key, value in values.items()
        if not any(key == each or key.startswith(f"{each}.") for each in overridden)
    }
    for key, value in chosen.items():
        OmegaConf.update(cfg, key, value, merge=True)
    return len(chosen)


@cache  # the parser takes milliseconds
def _keys(override: str) -> tuple[str, ...]:
    """The dotted keys that an override sets. One such as algorithm=maml chooses a file, and sets no single value."""
    parsed = OverridesParser.create().parse_override(override)
    key, value = parsed.key_or_group, parsed.value()
    if isinstance(value, dict):  # as in train={steps: 5}, which leaves the other values of train as they are
        return tuple(inner for inner, _ in flatten(value, f"{key}."))
    return () if key in (*GROUP_PARTS, "protocol") else (key,)


def apply_protocols(cfg: DictConfig, overrides: Iterable[str]) -> str:
    """Fill in the `rows` of each protocol that hold for this task; what `overrides` sets stays.

    A protocol without a number of queries has no test for this task, and is left out.

    Returns:
        A line about those of `overrides` that were left out; empty if there are none.

    Raises:
        FewshotError: none is left, or one is no protocol.
    """
    if not isinstance(cfg.get("protocol"), DictConfig) or not cfg.protocol:
        raise FewshotError("protocol: names no test; choose some, such as protocol=common or protocol=[common,paper]")
    overrides, chosen, facts = list(overrides), list(cfg.protocol), task_facts(cfg)
    for name in chosen:
        rows = _protocol_node(cfg, name).get("rows") or []
        _check_rows(name, rows, facts)
        values = {f"protocol.{name}.{key}": value for key, value in settings_of(rows, facts).items()}
        set_values(cfg, values, overrides)
    nodes = {name: _protocol_node(cfg, name) for name in chosen}
    cfg.protocol = {
        name: {key: value for key, value in node.items() if key != "rows"}
        for name, node in nodes.items()
        if node.get("query", 0) is not None
    }
    left_out = [name for name in chosen if name not in cfg.protocol]
    named = {key: facts[key] for key in ("recipe", "dataset", "way", "shot")}
    task = ", ".join(f"{key}={'none' if value is None else value}" for key, value in named.items())
    if not cfg.protocol:
        raise FewshotError(f"protocol={','.join(chosen)}: has no test for {task}; choose protocol=common")
    words = ("protocol=", *(f"protocol.{name}." for name in left_out))
    asked = any(override.lstrip("+").startswith(words) for override in overrides)
    return f"protocol {', '.join(left_out)}: no test for {task}; left out" if left_out and asked else ""


def _protocol_node(cfg: DictConfig, name: str) -> dict[str, Any]:
    # Not resolved: an interpolation such as ${shot} refers to the configuration that takes the value.
    if not isinstance(cfg.protocol[name], DictConfig):
        raise FewshotError(
            f"protocol.{name}: has parts, such as protocol.common.query; a protocol of your own is a file that begins "
            "with `# @package protocol.<its name>`"
        )
    node: Any = OmegaConf.to_container(cfg.protocol[name], resolve=False)
    return node


def _check_rows(name: str, rows: Any, facts: Mapping[str, Any]) -> None:
    """Check the rows of a person's own protocol. Raises FewshotError."""
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and row.keys() == {"when", "set"} and all(isinstance(part, dict) for part in row.values())
        for row in rows
    ):
        raise FewshotError(f"protocol.{name}.rows: must be a list of {{when: {{...}}, set: {{...}}}}")
    for key in (key for row in rows for key in row["when"] if key not in facts):
        raise FewshotError(
            f"protocol.{name}.rows: no condition {key}{did_you_mean(key, facts) or ';'} see conf/protocol"
        )
