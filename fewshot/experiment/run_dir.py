"""Run folders: their names, whether a folder holds this very run, its saved configuration and data."""

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
from fewshot.engine.evaluate import SETTINGS
from fewshot.experiment.config import (
    GROUP_PARTS,
    UNHASHED_KEYS,
    config_hash,
    counted,
    is_regression,
    key_names,
    resolved,
    typed_settings,
)
from fewshot.experiment.paths import SAVED_PATH_KEYS, literal
from fewshot.experiment.protocol import Protocol, read_protocols
from fewshot.report.records import read_record
from fewshot.training.folder import LISTED
from fewshot.training.settings import LATER_SETTINGS

TESTS = "tests"  # the folder of a run's records, one below it for each test
DATA = "data.json"  # the data that a run began with
EXTRACTOR = "extractor"  # its key for what is known of the extractor that the network began with
WEIGHTS = "weights"  # and for the file and hash of pretrained weights that the network began with
STARTUP_FILES = (LOCK, "config.yaml.part", DATA, f"{DATA}.part")  # left by a run that died in its first moments


def run_folder(config: dict[str, Any]) -> Path:
    """The folder of a run: `run_dir`, or a readable name that ends in a hash of the whole configuration."""
    if config["run_dir"]:
        return Path(config["run_dir"])
    way = "" if is_regression(config["dataset"]) else f"{config['way']}w"
    task = f"{config['dataset']['name']}-{way}{config['shot']}s"
    name = f"{config['algorithm']['name']}-{config['backbone']['name']}-seed{config['seed']}-{config_hash(config)[:8]}"
    return Path(config["runs"]) / task / name


def finished_tests(folder: Path, cfg: DictConfig) -> list[Path]:
    """The folders of all tests that a configuration asks for, if the folder holds this very run and their records.

    Empty if the run is new, one of the tests is not there yet, or `force` asks for another run.

    Raises:
        FewshotError: the folder holds something else.
    """
    listed = folder / "config.yaml"
    if listed.exists():
        config, saved = resolved(cfg), resolved(saved_config(folder))
        if config_hash(saved) != config_hash(config):
            one, other = counted(config), counted(saved)
            keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
            raise FewshotError(f"{folder}: holds another run (other {', '.join(keys)}); choose another run_dir")
    elif folder.exists() and (not folder.is_dir() or any(p.name not in STARTUP_FILES for p in folder.iterdir())):
        raise FewshotError(f"{folder}: not empty and not a run; choose another run_dir")
    if cfg.force:
        return []
    tests: list[Path] = []
    for protocol in read_protocols(cfg):
        inductive = folder / TESTS / f"{protocol.slug}-{SETTINGS[-1]}"
        for setting in protocol.settings(_queries_independent(inductive)):
            tests.append(folder / TESTS / f"{protocol.slug}-{setting}")
            # Of older tests on other splits `write_tests` finds whether their episodes are those of today.
            if protocol.split != "test" or not _has_test(tests[-1], protocol):
                return []
    return tests


def _has_test(test: Path, protocol: Protocol) -> bool:
    """Whether a folder holds the record of a test by this protocol."""
    record = test / "record.json"
    return record.exists() and protocol.is_of(read_record(record))


def _queries_independent(inductive: Path) -> bool:
    """Whether an inductive test is there, of a learner whose transductive test would be the same."""
    record = inductive / "record.json"
    return record.exists() and read_record(record).get("queries_independent", False)


def find_run(folder: Path) -> Path:
    """The run folder that a person names: the folder itself, or, of the folder of a test, the run that it is of.

    Raises:
        FewshotError: there is none.
    """
    if (folder / "config.yaml").is_file():
        return folder
    tests = folder.absolute().parent
    if tests.name == TESTS and (tests.parent / "config.yaml").is_file():
        return tests.parent
    if (folder / LISTED).is_file():
        raise FewshotError(
            f"{folder}: a training by fewshot.train, whose network your script alone knows; there call fewshot.train "
            "again with the same arguments and this folder, which returns what it holds, or continues it"
        )
    runs = sorted(path.parent for path in (*folder.glob("*/config.yaml"), *folder.glob("*/*/config.yaml")))
    hint = f"; name a run in it, such as {runs[0]}" if runs else "; name a folder that train.py left below runs"
    raise FewshotError(f"{folder}: not a run folder, without config.yaml{hint}")


def saved_config(
    folder: Path, *, device: str | None = None, root: str | None = None, data_dir: str | None = None
) -> DictConfig:
    """The saved configuration of a run, to continue or test it.

    Args:
        device: replaces the run's own.
        root: where the images of the run, or its published features, are now.
        data_dir: where the prepared data of the run are now.

    Raises:
        FewshotError: the configuration is damaged, or the files are not there.
    """
    listed = folder / "config.yaml"
    try:
        schema, saved = typed_settings("train"), OmegaConf.load(listed)
        assert isinstance(saved, DictConfig)
        keys, saved_keys = set(key_names(schema)), set(key_names(saved))
        # A run of an older version may lack these, and those that came later.
        saved_keys |= keys & set(UNHASHED_KEYS) | {key for key in keys if key.rpartition(".")[2] in LATER_SETTINGS}
        settings = {key.split(".")[0] for key in keys} - {*GROUP_PARTS, "protocol"}  # a person may add others
        if different := {key for key in keys ^ saved_keys if key.split(".")[0] in settings}:
            raise ValueError(f"{min(different)} is {'missing' if min(different) in keys else 'no key'}")
        cfg = OmegaConf.merge(schema, saved, {"run_dir": literal(str(folder)), "force": False})
        if device is not None:
            cfg.device = device
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FewshotError(f"{listed}: damaged, or not of this version ({reason}); choose another folder") from error
    assert isinstance(cfg, DictConfig)
    if OmegaConf.select(cfg, "dataset.reader._target_") == "fewshot.read_folder":
        OmegaConf.update(cfg, "dataset.reader.upright", cfg.dataset.reader.get("upright", False))  # as it was before
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
    """Replace the folder `old` by `new` in the paths of the readers of a configuration."""

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
    """The data that a run began with.

    Returns:
        {"train": fingerprint, "val": ..., "test": ..., "shape": [C, H, W] as the learner sees an example, "classes":
        names of the training classes, "validation_classes": names of the validation classes, "outputs": those of a
        regression}; by `EXTRACTOR` what is known of the extractor, if the network began with one; by `WEIGHTS` {"file",
        "sha256"} of pretrained weights, if it began with such; "float_images": {"unit_range"} where images are floats;
        "image_shape": of images before `dataset.crop`, where there is one (older runs lack it). None if the run has not
        begun.

    Raises:
        FewshotError: the file is damaged.
    """
    listed = folder / DATA
    if not listed.exists():
        return None
    try:
        info = dict(json.loads(listed.read_text(encoding="utf-8")))
        if missing := {"shape", "classes"} - info.keys():
            raise ValueError(f"no {min(missing)}")
        return info
    except (OSError, ValueError, TypeError) as error:
        raise FewshotError(f"{listed}: damaged ({error}); choose another run_dir, or force=true") from error


def data_info_of(run: Path) -> dict[str, Any]:
    """The data that a run began with, as `load_data_info` gives them.

    Raises:
        FewshotError: the run has not begun, or the file is damaged.
    """
    info = load_data_info(run)
    if info is None:
        raise FewshotError(f"{run}: the run has not begun; train it first")
    return info
