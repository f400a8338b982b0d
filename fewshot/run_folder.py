"""A run's folder: where it lies, whether it holds this very run, and what the run began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fewshot.checkpoint import LOCK
from fewshot.config import PLACES, TrainConfig, identity, of_functions, resolved
from fewshot.errors import FewshotError

# Keys that runs of earlier versions lack.
LATER = {"plot": False, "inductive_too": False, "records": None, "test": {"steps": None}}
DATA = "data.json"  # what a run began with
OURS = (LOCK, "config.yaml.part", DATA, f"{DATA}.part")  # what a run that died in its first moments leaves


def run_folder(config: dict[str, Any]) -> Path:
    """`run_dir`, or a name that says the run and ends in a hash of its whole configuration."""
    if config["run_dir"]:
        return Path(config["run_dir"])
    way = "" if of_functions(config["dataset"]) else f"{config['way']}w"
    task = f"{config['dataset']['name']}-{way}{config['shot']}s"
    name = f"{config['algorithm']['name']}-{config['backbone']['name']}-seed{config['seed']}-{identity(config)[:8]}"
    return Path(config["runs"]) / task / name


def is_finished(folder: Path, cfg: DictConfig) -> bool:
    """Whether the folder holds this very run with its record; False where it is new or unfinished.

    Raises:
        FewshotError: the folder holds something else.
    """
    listed = folder / "config.yaml"
    if listed.exists():
        config, theirs = resolved(cfg), resolved(saved_config(folder))
        if identity(theirs) != identity(config):
            keys = sorted(
                k for k in config.keys() | theirs.keys() if k not in PLACES and config.get(k) != theirs.get(k)
            )
            raise FewshotError(f"{folder}: holds another run (other {', '.join(keys)}); choose another run_dir")
    elif folder.exists() and (not folder.is_dir() or any(p.name not in OURS for p in folder.iterdir())):
        raise FewshotError(f"{folder}: not empty and not a run; choose another run_dir")
    return (folder / "record.json").exists()


def saved_config(folder: Path, *, device: str | None = None) -> DictConfig:
    """The configuration of a run, to be continued or tested where it lies.

    Raises:
        FewshotError: the folder holds no run.
    """
    listed = folder / "config.yaml"
    if not listed.is_file():
        raise FewshotError(f"{folder}: not a run folder (no config.yaml); give the folder that a run printed")
    try:
        schema = OmegaConf.structured(TrainConfig)
        cfg = OmegaConf.merge(schema, LATER, OmegaConf.load(listed), {"run_dir": str(folder), "force": False})
        if not of_functions(cfg.dataset) and not isinstance(OmegaConf.select(cfg, "dataset.augment"), DictConfig):
            raise ValueError("dataset.augment is of an earlier version of this code")
        if device is not None:
            cfg.device = device
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FewshotError(f"{listed}: damaged, or not of this version ({reason}); choose another folder") from error
    assert isinstance(cfg, DictConfig)
    return cfg


def began_with(folder: Path) -> dict[str, Any] | None:
    """What a run began with: the fingerprint of each split, what its learner sees, and which classes it learns from.

    Returns:
        {"train": ..., "val": ..., "test": ..., "shape": [C, H, W], "classes": [...]}, or None where it has not begun.

    Raises:
        FewshotError: the file is damaged, or of an earlier version of this code.
    """
    listed = folder / DATA
    if not listed.exists():
        return None
    try:
        found = dict(json.loads(listed.read_text(encoding="utf-8")))
        if missing := {"shape", "classes"} - found.keys():
            raise ValueError(f"no {min(missing)}, as an earlier version of this code wrote it")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise FewshotError(f"{listed}: damaged ({error}); choose another run_dir, or force=true") from error
