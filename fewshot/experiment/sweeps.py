"""Sweeps: the status file of each job, and the tables and the failures that are printed at the end.

Hydra's launchers run each job in this process, in others or on other machines, and do not say what became of it. So
every job writes a status file to a folder that all of them see.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob, Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fewshot.core.distributed import is_rank_zero, launched
from fewshot.core.errors import FewshotError, writing
from fewshot.core.files import lock_file, write_atomically
from fewshot.experiment.config import given_overrides

EXTRAS = ("joblib", "submitit", "ray", "optuna")  # of pyproject.toml
SWEEP = re.compile(r"\s*([^\s=]+=\S+\s*)+")
_began: set[Path] = set()  # folders of runs that this sweep began, in this process
_outputs: set[tuple[str, Any]] = set()  # files of its runs, likewise


def check_plugin(group: str, choice: str, sweep: bool) -> None:
    """Check that the plugin of `hydra/launcher=joblib_here` and the like is installed, by the extra in its name.

    Raises:
        FewshotError: the plugin is not installed, or this is no sweep.
    """
    if not sweep:
        raise FewshotError(f"{group}={choice}: is for sweeps; add -m")
    _check_launched(group, choice)
    extra = choice.split("_")[0]
    if extra not in EXTRAS:  # a launcher of Hydra itself, or one that a person added
        return
    try:
        version(f"hydra-{extra}-{group.split('/')[1]}")
    except PackageNotFoundError:
        raise FewshotError(
            f"{group}={choice}: not installed; `pip install -e '.[{extra}]'`, or `uv run --extra {extra} python ...`"
        ) from None


def began_in_sweep(folder: Path) -> bool:
    """Whether an earlier job of this sweep began the run of a folder, in this process."""
    return folder.absolute() in _began


def note_beginning(folder: Path) -> None:
    """Remember that a job began the run of a folder, until the next sweep."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        _began.add(folder.absolute())


def check_launcher(cfg: DictConfig) -> None:
    """Check the launcher and the sweeper that a configuration chose.

    Raises:
        FewshotError: torchrun started this process, and they are not Hydra's own.
    """
    for part in ("launcher", "sweeper"):
        if not cfg.hydra[part]._target_.startswith("hydra._internal."):
            _check_launched(f"hydra/{part}", cfg.hydra.runtime.choices[f"hydra/{part}"])


def _check_launched(group: str, choice: str) -> None:
    if launched() > 1:
        raise FewshotError(f"{group}={choice}: not under torchrun, whose processes share out each run of a sweep")


@contextmanager
def own_outputs(cfg: DictConfig) -> Iterator[None]:
    """A context for a run of a sweep that writes files: if it ends well, no later run may write them.

    Raises:
        FewshotError: an earlier run of the sweep, in this process, has written one of them.
    """
    given = {key: cfg[key] for key in ("out", "page", "sheet", "pictures") if cfg.get(key) is not None}
    # Pictures of two formats have different names, and may lie in one folder.
    outputs = {key: (os.path.realpath(path), key == "pictures" and cfg.format) for key, path in given.items()}
    for key, path in given.items():
        if outputs[key] in _outputs:
            each = "_${hydra:job.num}".join(os.path.splitext(path))
            raise FewshotError(f"{key}={path}: was written by an earlier run of this sweep; set '{key}={each}'")
    yield
    _outputs.update(outputs.values())


@contextmanager
def sweep_status_dir(sweep_dir: Path, command: list[str]) -> Iterator[Path]:
    """A folder for the status files of a sweep's jobs, below `sweep_dir`; it is deleted when the sweep is over.

    Its name is a hash of the command, so that the same command clears what a killed sweep left.

    Raises:
        FewshotError: the same sweep is running, or the folder cannot be written to.
    """
    name = hashlib.sha256(json.dumps(command).encode()).hexdigest()[:8]
    folder = sweep_dir.resolve() / f".sweep-{name}"
    _began.clear()
    _outputs.clear()
    if not is_rank_zero():
        yield folder
        return
    lock = folder.with_suffix(".lock")
    with writing(lock, "another hydra.sweep.dir"):
        try:
            file = lock_file(lock, wait=False)
        except BlockingIOError as error:
            raise FewshotError("the same sweep is running already; wait for it, or stop it") from error
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        file.close()


def split_sweeps(sweeps: Sequence[str], overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each sweep of an experiment, with those of the command line.

    What the command line says of a key that a sweep names chooses among its values there. A sweep of which it leaves no
    value, and one without the key, is left out. All other overrides hold for every sweep.

    Args:
        sweeps: such as ["algorithm=maml,reptile dataset=mini shot=1,5"]; none: the command line is the only sweep.

    Raises:
        FewshotError: a value is in no sweep, or no sweep is left; one is not of words such as `shot=1,5`, or an
            override is an interval.
    """
    if not sweeps:
        return [[override.input_line or "" for override in overrides]]
    if isinstance(sweeps, str) or not all(isinstance(sweep, str) and SWEEP.fullmatch(sweep) for sweep in sweeps):
        raise FewshotError(f"sweeps={sweeps}: must be a list of texts such as 'algorithm=maml,reptile shot=1,5'")
    offers = [dict(word.split("=", 1) for word in sweep.split()) for sweep in sweeps]
    named = {key for offer in offers for key in offer}
    given = {override.key_or_group: _values(override) for override in overrides if override.key_or_group in named}
    parts = []
    for offer in offers:
        offered = {key: values.split(",") for key, values in offer.items()}
        chosen = {key: [value for value in offered[key] if value in given.get(key, [value])] for key in offered}
        if all(chosen.values()) and given.keys() <= offered.keys():
            others = [override.input_line or "" for override in overrides if override.key_or_group not in offered]
            parts.append([*(f"{key}={','.join(values)}" for key, values in chosen.items()), *others, "sweeps=null"])
    globs = {override.key_or_group for override in overrides if isinstance(override.value(), Glob)}
    lacking = [
        f"{key}={value}"
        for key, values in given.items()
        for value in values
        if key not in globs  # a glob takes what there is of its kind
        and not any(value in offer.get(key, "").split(",") for offer in offers)
    ]
    if lacking or not parts:
        words = " ".join(lacking or [override.input_line or "" for override in overrides])
        raise FewshotError(f"{words}: has no run of this experiment; its sweeps are: {'; '.join(sweeps)}")
    return parts


def only_run(sweeps: Sequence[str], overrides: Sequence[Override]) -> list[str]:
    """The overrides of the one run of an experiment that the command line leaves.

    Raises:
        FewshotError: it leaves several, or as `split_sweeps`.
    """
    part, *others = split_sweeps(sweeps, overrides)
    keys = {word.partition("=")[0] for sweep in sweeps for word in sweep.split()}
    if others or any("," in word for word in part if word.partition("=")[0] in keys):
        raise FewshotError(f"--cfg: shows one run; choose one of the experiment's sweeps: {'; '.join(sweeps)}")
    return part


def _values(override: Override) -> list[str]:
    if override.is_delete():
        return []
    if override.is_interval_sweep():
        raise FewshotError(
            f"{override.input_line}: an interval is for a search; the sweeps of this experiment have values"
        )
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_string()]


@functools.cache  # once in a process
def exit_with_parent(parent: int) -> None:
    """Let this process end as soon as its parent process is gone.

    Otherwise joblib's workers continue, and hold run folders that the same sweep, started again, needs.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_status(folder: Path, records: list[Path], failure: str | None) -> None:
    """Write what became of the job that this process runs: the records it wrote, or why it failed."""
    if not is_rank_zero():
        return
    status = {
        "overrides": given_overrides(),
        "records": [str(record.resolve()) for record in records],
        "failure": failure,
    }
    write_atomically(folder / f"{HydraConfig.get().job.num:06d}.json", json.dumps(status).encode())


def objective(record: Path) -> float | None:
    """The number that a search over hyperparameters maximises: the validation accuracy, or minus the validation error.

    For a search that minimises, it has the opposite sign. None without validation.
    """
    from fewshot.report.records import metric_of, read_record

    content = read_record(record)
    validation = content.get("validation")
    if validation is None:
        return None
    metric = metric_of(content)
    score = float(validation[metric]) if metric == "accuracy" else -float(validation[metric])
    minimises = "minimize" in str(OmegaConf.select(HydraConfig.get().sweeper, "direction"))
    return -score if minimises else score


def is_search() -> bool:
    """Whether a sweeper other than Hydra's own chooses the values of this sweep, by the scores of earlier runs."""
    cfg = HydraConfig.get()
    return cfg.mode == RunMode.MULTIRUN and not cfg.sweeper._target_.startswith("hydra._internal.")


def check_search(found: bool) -> None:
    """Check that a run of a search has a validation score.

    Args:
        found: whether it has one, or is going to have one.

    Raises:
        FewshotError: it has none, and this is a search.
    """
    if not found and is_search():
        raise FewshotError(
            "a search goes by the score on the validation classes, and this run has none: set "
            "train.validate_every=<outer steps>, or search in a method that is trained"
        )


def print_sweep_summary(folder: Path) -> bool:
    """Print the tables of all records of a sweep, and its failures. Returns whether no job failed."""
    from fewshot.report.records import read_record
    from fewshot.report.table import markdown
    from fewshot.report.validation import render_validation

    jobs: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.json"))
    ]
    failures = [f"{_distinct_overrides(job, jobs)}{job['failure']}" for job in jobs if job["failure"]]
    # A search may run the same configuration twice.
    records, warnings = [], []
    for path in dict.fromkeys(record for job in jobs for record in job["records"]):
        try:
            records.append(read_record(Path(path)))
        except FewshotError as error:
            failures.append(str(error))
    for render in (functools.partial(markdown, complaints=failures, warnings=warnings), render_validation):
        try:
            if text := render(records):
                print(f"\n{text}")
        except FewshotError as error:
            failures.append(str(error))
    for line in [*(f"warning: {each}" for each in warnings), *(f"failed: {each}" for each in failures)]:
        print(line, file=sys.stderr)
    return not failures


def _distinct_overrides(job: dict[str, Any], jobs: list[dict[str, Any]]) -> str:
    """The overrides that not all jobs have in common, as the start of a message."""
    common = set(job["overrides"]).intersection(*(other["overrides"] for other in jobs))
    distinct = " ".join(override for override in job["overrides"] if override not in common)
    return distinct and f"{distinct}: "
