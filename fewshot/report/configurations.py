"""How the configurations of runs differ: the keys of `config.yaml` in which they do, side by side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fewshot.core.errors import one_line
from fewshot.core.paths import UNHASHED_KEYS
from fewshot.report.gather import STEPS
from fewshot.report.labels import column_names, column_of, method_names
from fewshot.report.page import NOTHING
from fewshot.report.records import Record

Flat = tuple[tuple[str, str], ...]  # (dotted key, value as it would be written)


def differences(runs: Sequence[Record]) -> tuple[pd.DataFrame, list[str], list[str]]:
    """A line per key that differs, a column per method; the folders without a configuration; and complaints.

    Runs that are alike but for seed and places are one column. A test below its run's folder has no configuration of
    its own, and is none of those without.
    """
    groups: dict[Flat, list[Record]] = defaultdict(list)
    missing, complaints = [], []
    for place, run in {run["folder"]: run for run in runs}.items():
        path = Path(place) / "config.yaml"
        if path.exists():
            try:
                groups[tuple(_flat(_content(path)))].append(run)
            except ValueError as error:
                complaints.append(f"{path} cannot be read as a configuration: {one_line(error)}")
        elif not (path.parents[2] / "config.yaml").exists():
            missing.append(place)
    configs = [dict(flat) for flat in groups]
    keys = dict.fromkeys(key for config in configs for key in config)
    # Classes and the like are said by the names beside them.
    told = (key for key in keys if not key.endswith(("_target_", "_partial_")))
    differing = [key for key in told if len({config.get(key, NOTHING) for config in configs}) > 1]
    columns = [[config.get(key, NOTHING) for key in differing] for config in configs]
    frame = pd.DataFrame(list(zip(differing, *columns, strict=True)), columns=["key", *_headings(groups.values())])
    return frame, missing, complaints


def _content(path: Path) -> Mapping[str, Any]:
    """Raises ValueError where the file is no configuration."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(one_line(error)) from error
    if not isinstance(found, dict):
        raise ValueError("it holds no keys")
    return {str(key): value for key, value in found.items() if key not in (*UNHASHED_KEYS, "seed")}


def _flat(content: Mapping[Any, Any], parents: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        name = f"{parents}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def _headings(groups: Iterable[list[Record]]) -> list[str]:
    """Each group's method and task, as tables name them."""
    together = list(groups)
    first = [group[0] for group in together]
    tasks = column_names(first)
    return [
        f"{name}; {tasks[column_of(group[0])]}; seed {', '.join(str(run['seed']) for run in group)}"
        for name, group in zip(method_names(first, [STEPS]), together, strict=True)
    ]
