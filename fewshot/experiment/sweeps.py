"""Sweeps: what their runs, in whatever process, leave word of, and the table and the failures at their end.

Hydra's launchers run each run in this process, in others or on other machines, and tell none what became of it. So
every run leaves a note in a folder that all of them see.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.experiment.config import given_overrides
from fewshot.report.records import metric_of, read_record

EXTRAS = ("joblib", "submitit", "ray", "optuna")  # of pyproject.toml


def check_plugin(group: str, choice: str, sweep: bool) -> None:
    """Hold `hydra/launcher=joblib_here` and the like, which begin with the extra they need, against what is installed.

    Raises:
        FewshotError: the plugin is not there, or no sweep is wanted.
    """
    if not sweep:
        raise FewshotError(f"{group}={choice}: is for sweeps; add -m")
    if "RANK" in os.environ:
        raise FewshotError(f"{group}={choice}: not under torchrun, which shares out single runs")
    extra = choice.split("_")[0]
    if extra not in EXTRAS:  # Hydra's own, or one that a person added
        return
    try:
        version(f"hydra-{extra}-{group.split('/')[1]}")
    except PackageNotFoundError:
        raise FewshotError(
            f"{group}={choice}: not installed; `pip install -e '.[{extra}]'`, or `uv run --extra {extra} python ...`"
        ) from None


@contextmanager
def sweep_status_dir(place: Path, command: list[str]) -> Iterator[Path]:
    """A folder for the notes of a sweep's runs, below the one where they lie; it goes when the sweep is over.

    It is named by the command, so that the same command takes over what a sweep that was killed left, and by the
    process, of those that torchrun started.
    """
    name = hashlib.sha256(json.dumps([os.environ.get("RANK"), *command]).encode()).hexdigest()[:8]
    folder = place.resolve() / f".sweep-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache  # once in a process
def exit_with_parent(parent: int) -> None:
    """Let this process end as soon as `parent`, whose child it is, is gone.

    joblib's processes otherwise go on with what they were given, and hold run folders that the same sweep, started
    again, wants.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_note(notes: Path, records: list[Path], failure: str | None) -> None:
    """Say what became of the run that this process is in: the records it left, or what it failed of."""
    hydra = HydraConfig.get()
    note = {
        "overrides": given_overrides(),
        "records": [str(record.resolve()) for record in records],
        "failure": failure,
    }
    write_atomically(notes / f"{hydra.job.num:06d}.json", json.dumps(note).encode())


def objective(record: Path) -> float | None:
    """What a search over hyperparameters goes by: the validation score of a run, None where none was validated."""
    found = read_record(record)
    validation = found.get("validation")
    return None if validation is None else float(validation[metric_of(found)])


def print_sweep_summary(notes: Path) -> bool:
    """Print the table of the runs that left a record, and say which failed; whether none did."""
    from fewshot.report.table import markdown

    found: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(notes.glob("*.json"))
    ]
    failed = [f"{_own(note, found)}{note['failure']}" for note in found if note["failure"]]
    # A search may come by the same run twice.
    paths = dict.fromkeys(record for note in found for record in note["records"])
    try:
        if paths:
            print(f"\n{markdown([read_record(Path(path)) for path in paths])}")
    except FewshotError as error:
        failed.append(str(error))
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return not failed


def _own(note: dict[str, Any], notes: list[dict[str, Any]]) -> str:
    """The overrides that not all runs of the sweep have."""
    common = set(note["overrides"]).intersection(*(other["overrides"] for other in notes))
    own = " ".join(override for override in note["overrides"] if override not in common)
    return own and f"{own}: "
