"""Records: what a run leaves for people and for tables, readable without this code."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewshot.checkpoint import write_atomically
from fewshot.errors import FewshotError

FORMAT = 1
Record = dict[str, Any]

NUMBER, MAYBE_NUMBER, MAYBE_TEXT = (int, float), (int, float, type(None)), (str, type(None))
NEEDED: dict[str, tuple[type, ...]] = {
    "algorithm": (str,), "backbone": MAYBE_TEXT, "dataset": (str,), "way": (int,), "shot": (int,), "query": (int,),
    "seed": (int,), "recipe": MAYBE_TEXT,
    "protocol.dataset": (str,), "protocol.split": (str,), "protocol.way": (int,), "protocol.shot": (int,),
    "protocol.query": (int,), "protocol.episodes": (int,), "protocol.episode_seed": (int,),
    "protocol.rotations": (str, bool, type(None)), "protocol.view": (str,),
    "protocol.manifest": (str,), "protocol.regime": (str,),
    "protocol.adaptation_steps": (int, str, type(None)), "protocol.train_on_val": (bool,),
    "protocol.selection": MAYBE_TEXT,
    "test.accuracy": NUMBER, "test.ci95": MAYBE_NUMBER, "test.episodes": (int,),
    "cost.train_seconds": MAYBE_NUMBER, "cost.train_tasks": (int,), "cost.tasks_per_second": MAYBE_NUMBER,
    "cost.peak_memory_bytes": MAYBE_NUMBER, "cost.device": MAYBE_TEXT,
    "config": (str,), "code.version": (str,), "code.commit": MAYBE_TEXT, "code.dirty": (bool, type(None)),
    "data.fingerprint": (str,),
}  # fmt: skip

_HOUSE = Path(__file__).resolve().parent


def write_record(folder: Path, record: Mapping[str, Any], scores: np.ndarray) -> None:
    """Write `episodes.csv` (one score per episode) and then `record.json`: a record means that all is there."""
    rows = "".join(f"{episode},{score:.6f}\n" for episode, score in enumerate(scores))
    write_atomically(folder / "episodes.csv", f"episode,accuracy\n{rows}".encode())
    write_atomically(folder / "record.json", (json.dumps(record, indent=1) + "\n").encode())


def code() -> dict[str, Any]:
    """Version, and the commit and its state where the code lies in a git checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=_HOUSE, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    house = _HOUSE.parent.parent
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != house:  # installed somewhere inside another project's checkout
        return {"version": _version("fewshot"), "commit": None, "dirty": None}
    # A file that git does not know yet, such as a new algorithm, is a change too.
    changes = git("status", "--porcelain", "--", *(str(house / part) for part in ("fewshot", "conf", "tools")))
    return {"version": _version("fewshot"), "commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def environment() -> dict[str, Any]:
    """Versions and machine: what else a number can depend on."""
    packages = ("torch", "torchvision", "learn2learn", "hydra-core", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def read_records(folder: Path) -> list[Record]:
    """Every `record.json` below `folder`, in the order of their paths; each gains its own `folder`, for messages.

    Raises FewshotError where one is not a record of a classification run, and where there is none.
    """
    paths = sorted(folder.rglob("record.json"))
    if not paths:
        raise FewshotError(
            f"no record.json below {folder}: make one with `python tools/train.py`, or say runs=<folder>"
        )
    return [read_record(path) for path in paths]


def read_record(path: Path) -> Record:
    """One record, its fields checked, and the `folder` it lies in.

    Raises:
        FewshotError: the file is not a record of a classification run.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FewshotError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != 1:
        raise FewshotError(f'{path} is not a record of this version: it lacks `"format": 1`')
    if isinstance(record.get("protocol"), dict):
        record["protocol"].setdefault("view", "whole images")  # all that there was before records said it
    for field, types in NEEDED.items():
        try:
            value = field_of(record, field)
        except (KeyError, TypeError):
            raise FewshotError(f"{path} is not a complete record: it lacks {field}") from None
        if type(value) not in types:  # not isinstance: JSON's true is no way, shot or seed
            expected = " or ".join(kind.__name__ for kind in types)
            raise FewshotError(f"{path} is not a record: {field} is {value!r} in place of {expected}")
    scored, planned = field_of(record, "test.episodes"), field_of(record, "protocol.episodes")
    if scored != planned:
        raise FewshotError(f"{path} scored {scored} of the {planned} episodes of its protocol: run the test again")
    if not 0 <= field_of(record, "test.accuracy") <= 1:  # also refuses NaN
        raise FewshotError(f"{path} has test.accuracy {field_of(record, 'test.accuracy')}, not a fraction from 0 to 1")
    return {**record, "folder": str(path.parent)}


def summary(record: Record, folder: Path) -> str:
    """One line of result for a person."""
    test, protocol = record["test"], record["protocol"]
    guarded = record["cost"].get("nan_guarded_steps")
    queries = "1 query" if protocol["query"] == 1 else f"{protocol['query']} queries"
    warning = f" WARNING: {guarded} steps had a NaN and took the parameters as their gradient;" if guarded else ""
    interval = "" if test["ci95"] is None else f" ± {100 * test['ci95']:.2f}"
    return (
        f"{record['algorithm']} {protocol['dataset']} {protocol['way']}-way {protocol['shot']}-shot: "
        f"{100 * test['accuracy']:.2f}{interval} % ({test['episodes']} episodes, "
        f"{queries} per class, {protocol['regime']}, recipe {record['recipe'] or 'none'}, "
        f"{record['cost']['train_seconds'] / 60:.1f} min of training){warning}  {folder}"
    )


def field_of(record: Record, field: str) -> Any:
    """The value at a dotted name."""
    value: Any = record
    for key in field.split("."):
        value = value[key]
    return value
