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

FORMAT = 1
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

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "version": _version("fewshot"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


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
