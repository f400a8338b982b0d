"""A run's folder: where it lies, whether it holds this very run, and what the run began with."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fewshot.core.errors import FewshotError
from fewshot.core.files import LOCK
from fewshot.core.paths import SAVED_PATH_KEYS, UNHASHED_KEYS, literal
from fewshot.experiment.config import config_hash, is_regression, resolved, typed_settings

DATA = "data.json"  # what a run began with
STARTUP_FILES = (LOCK, "config.yaml.part", DATA, f"{DATA}.part")  # what a run that died in its first moments leaves


def run_folder(config: dict[str, Any]) -> Path:
    """`run_dir`, or a name that says the run and ends in a hash of its whole configuration."""
    if config["run_dir"]:
        return Path(config["run_dir"])
    way = "" if is_regression(config["dataset"]) else f"{config['way']}w"
    task = f"{config['dataset']['name']}-{way}{config['shot']}s"
    name = f"{config['algorithm']['name']}-{config['backbone']['name']}-seed{config['seed']}-{config_hash(config)[:8]}"
    return Path(config["runs"]) / task / name


def is_finished(folder: Path, cfg: DictConfig) -> bool:
    """Whether the folder holds this very run with its record; False where it is new or unfinished.

    Raises:
        FewshotError: the folder holds something else.
    """
    listed = folder / "config.yaml"
    if listed.exists():
        config, theirs = resolved(cfg), resolved(saved_config(folder))
        if config_hash(theirs) != config_hash(config):
            keys = sorted(
                k for k in config.keys() | theirs.keys() if k not in UNHASHED_KEYS and config.get(k) != theirs.get(k)
            )
            raise FewshotError(f"{folder}: holds another run (other {', '.join(keys)}); choose another run_dir")
    elif folder.exists() and (not folder.is_dir() or any(p.name not in STARTUP_FILES for p in folder.iterdir())):
        raise FewshotError(f"{folder}: not empty and not a run; choose another run_dir")
    return (folder / "record.json").exists()


def saved_config(
    folder: Path, *, device: str | None = None, root: str | None = None, data_dir: str | None = None
) -> DictConfig:
    """The configuration of a run, to be continued or tested where it lies.

    Args:
        device: in place of the run's own.
        root: where the run's images lie now, or, of published features, those.
        data_dir: what the run's folder of data is now.

    Raises:
        FewshotError: the folder holds no run, or one without such files.
    """
    listed = folder / "config.yaml"
    if not listed.is_file():
        raise FewshotError(f"{folder}: not a run folder (no config.yaml); give the folder that a run printed")
    try:
        schema = typed_settings("train")
        cfg = OmegaConf.merge(schema, OmegaConf.load(listed), {"run_dir": literal(str(folder)), "force": False})
        if device is not None:
            cfg.device = device
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FewshotError(f"{listed}: damaged, or not of this version ({reason}); choose another folder") from error
    assert isinstance(cfg, DictConfig)
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise FewshotError(f"data_dir={data_dir}: no such folder; name the one that the run's data lie in now")
        _move_files(cfg, Path(cfg.data_dir), Path(data_dir).absolute(), SAVED_PATH_KEYS)
        cfg.data_dir = data_dir
    if root is not None:
        published = OmegaConf.select(cfg, "features.name") == "published"
        reader = cfg.features.reader if published else cfg.dataset.reader
        if OmegaConf.is_missing(reader, "root") or reader.get("root") is None:
            raise FewshotError(f"root={root}: {cfg.dataset.name} are made, not read; leave it out")
        if not Path(root).exists():
            raise FewshotError(f"root={root}: no such file or folder; name one that is there")
        _move_files(cfg, Path(reader.root), Path(root).absolute(), ("root", "csv"))
    return cfg


def _move_files(cfg: DictConfig, old: Path, new: Path, keys: Collection[str]) -> None:
    """Let the readers of a run's configuration look below `new` for what they had at `old` or below it."""

    def move(node: DictConfig) -> None:
        for key, value in node.items_ex(resolve=False):
            if isinstance(value, DictConfig):
                move(value)
            elif key in keys and isinstance(value, str) and Path(value).is_relative_to(old):
                node[key] = str(new / Path(value).relative_to(old))

    for name in ("dataset", "features"):
        if isinstance(node := OmegaConf.select(cfg, f"{name}.reader"), DictConfig):
            move(node)


def load_data_info(folder: Path) -> dict[str, Any] | None:
    """What a run began with: the fingerprint of each split, what its learner sees, and which classes it learns from.

    Returns:
        {"train": ..., "val": ..., "test": ..., "shape": [C, H, W], "classes": [...]}, or None where it has not begun.

    Raises:
        FewshotError: the file is damaged.
    """
    listed = folder / DATA
    if not listed.exists():
        return None
    try:
        found = dict(json.loads(listed.read_text(encoding="utf-8")))
        if missing := {"shape", "classes"} - found.keys():
            raise ValueError(f"no {min(missing)}")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise FewshotError(f"{listed}: damaged ({error}); choose another run_dir, or force=true") from error
