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

from fewshot.core.errors import FewshotError, one_line
from fewshot.core.files import write_atomically
from fewshot.core.paths import expand_path

FORMAT = 2
Record = dict[str, Any]
METRICS = ("accuracy", "mse")

NUMBER, MAYBE_NUMBER, MAYBE_TEXT = (int, float), (int, float, type(None)), (str, type(None))
NEEDED: dict[str, tuple[type, ...]] = {
    "algorithm": (str,), "backbone": MAYBE_TEXT, "dataset": (str,), "way": (int,), "shot": (int,), "query": (int,),
    "seed": (int,), "recipe": MAYBE_TEXT,
    "protocol.dataset": (str,), "protocol.split": (str,), "protocol.way": (int,), "protocol.shot": (int,),
    "protocol.query": (int,), "protocol.episodes": (int,), "protocol.episode_seed": (int,),
    "protocol.rotations": (str, bool, type(None)), "protocol.view": MAYBE_TEXT,
    "protocol.manifest": (str,), "protocol.setting": (str,),
    "protocol.adaptation_steps": (int, str, list, type(None)), "protocol.train_on_val": (bool,),
    "protocol.selection": MAYBE_TEXT,
    "test.ci95": (*MAYBE_NUMBER, dict), "test.episodes": (int,),
    "cost.train_seconds": MAYBE_NUMBER, "cost.train_tasks": (int,), "cost.tasks_per_second": MAYBE_NUMBER,
    "cost.peak_memory_bytes": MAYBE_NUMBER, "cost.device": MAYBE_TEXT,
    "config": (str,), "code.version": (str,), "code.commit": MAYBE_TEXT, "code.dirty": (bool, type(None)),
    "data.fingerprint": (str,), "cost.gradient_evaluations": (int, type(None)),
    "train.shot": (int,), "train.query": (int,),
}  # fmt: skip
_HOUSE = Path(__file__).resolve().parent


def write_record(folder: Path, record: Mapping[str, Any], scores: Mapping[str, np.ndarray]) -> None:
    """Write `episodes.csv` and then `record.json`: a record means that all is there.

    Args:
        scores: the scores [episodes] by the heading of their column: the metric, or, of a record that scores several
            numbers of adaptation steps, metric and steps: `accuracy`; `mse_1`, `mse_5`, `mse_10`.
    """
    rows = (",".join(f"{score:.6f}" for score in row) for row in zip(*scores.values(), strict=True))
    lines = [",".join(["episode", *scores]), *(f"{episode},{row}" for episode, row in enumerate(rows))]
    write_atomically(folder / "episodes.csv", ("\n".join(lines) + "\n").encode())
    write_atomically(folder / "record.json", (json.dumps(record, indent=1) + "\n").encode())


def copy_record(folder: Path, target: Path, runs: Path) -> None:
    """Copy a record and its scores below another folder, under the name that its folder has below `runs`."""
    place = target / folder.relative_to(runs)
    for name in ("episodes.csv", "record.json"):
        write_atomically(place / name, (folder / name).read_bytes())


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


def read_records(folder: str | Path) -> list[Record]:
    """Every `record.json` below `folder`, in the order of their paths; each gains its own `folder`, for messages.

    Raises FewshotError where one is not a record, and where there is none.
    """
    folder = expand_path(folder)
    paths = sorted(folder.rglob("record.json"))
    if not paths:
        raise FewshotError(
            f"no record.json below {folder}: make one with `python tools/train.py`, or say runs=<folder>"
        )
    return [read_record(path) for path in paths]


def read_record(path: str | Path) -> Record:
    """One record, its fields checked, and the `folder` it lies in.

    Its score, `test.accuracy` (a fraction) or `test.mse`, and `test.ci95` are numbers, or, where the run was tested
    after several numbers of adaptation steps, mappings from each of them, a string, to a number.

    Raises:
        FewshotError: the file is not a record, or not one that this version knows.
    """
    path = expand_path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FewshotError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    form = record.get("format") if isinstance(record, dict) else None
    if type(form) is not int or form < 1:
        raise FewshotError(f'{path} is not a record: it lacks `"format": {FORMAT}`')
    if form > FORMAT:
        raise FewshotError(f"{path} is of a newer version of records ({form}, known here is {FORMAT}): update the code")
    if form < FORMAT:
        raise FewshotError(f"{path} is of an older version of records ({form}, not {FORMAT}): test the run again")
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
    _check_scores(record, path)
    return {**record, "folder": str(path.parent)}


def _check_scores(record: Record, path: Path) -> None:
    """Raise where the scores are none, or steps and scores are not of the same numbers of adaptation steps."""
    test, steps = record["test"], record["protocol"]["adaptation_steps"]
    if sum(metric in test for metric in METRICS) != 1:
        raise FewshotError(f"{path} is not a complete record: it lacks test.accuracy or test.mse, or has both")
    metric = metric_of(record)
    parts = {"protocol.adaptation_steps": steps, f"test.{metric}": test[metric], "test.ci95": test["ci95"]}
    numbers = [sorted(map(str, part)) if isinstance(part, list | dict) else None for part in parts.values()]
    whole = all(number.isdecimal() for number in numbers[0] or [])
    if not whole or [] in numbers or numbers.count(numbers[0]) < len(numbers):
        said = ", ".join(f"{name} {list(part) if isinstance(part, dict) else part}" for name, part in parts.items())
        raise FewshotError(f"{path}: all of these have to be of the same numbers of steps, one or several: {said}")
    values, halves = (part.values() if isinstance(part, dict) else [part] for part in (test[metric], test["ci95"]))
    allowed, most = ("a fraction from 0 to 1", 1.0) if metric == "accuracy" else ("a finite number of 0 or more", 1e300)
    for value, half in zip(values, halves, strict=True):
        if type(value) not in NUMBER or not 0 <= value <= most:  # also refuses NaN
            raise FewshotError(f"{path} has test.{metric} {value}, not {allowed}")
        if type(half) not in MAYBE_NUMBER or (half is not None and half < 0):
            raise FewshotError(f"{path} has test.ci95 {half}, not null or a number of 0 or more")


def metric_of(record: Record) -> str:
    """What the run was scored by: `accuracy`, or `mse`, the mean squared error of a regression."""
    return next(metric for metric in METRICS if metric in record["test"])


def task_name(task: Mapping[str, Any]) -> str:
    """Dataset, way and shot in words, `omniglot 5-way 1-shot`; of a regression, which has way 1, `sinusoid 10-shot`."""
    way = "" if task["way"] == 1 else f"{task['way']}-way "
    return f"{task['dataset']} {way}{task['shot']}-shot"


def summary(record: Record, folder: Path) -> str:
    """One line of result for a person."""
    test, protocol, metric = record["test"], record["protocol"], metric_of(record)
    if isinstance(test[metric], dict):
        said = [f"{_score(metric, value, test['ci95'][n])} after {n}" for n, value in test[metric].items()]
        result = f"{', '.join(said)} update{'' if said[-1].endswith(' 1') else 's'}"
    else:
        result = _score(metric, test[metric], test["ci95"])
    tested = [f"{test['episodes']} episodes", "1 query" if protocol["query"] == 1 else f"{protocol['query']} queries"]
    if metric == "accuracy":
        tested[1] += " per class"
        tested.append(protocol["setting"])
    guarded = record["cost"].get("nan_guarded_steps")
    warning = f" WARNING: {guarded} steps had a NaN and took the parameters as their gradient;" if guarded else ""
    return (
        f"{record['algorithm']} {task_name(protocol)}: {'MSE ' * (metric == 'mse')}{result} ({', '.join(tested)}, "
        f"recipe {record['recipe'] or 'none'}, {record['cost']['train_seconds'] / 60:.1f} min of training)"
        f"{warning}  {folder}"
    )


def _score(metric: str, value: float, half: float | None) -> str:
    unit, decimals, sign = (100, 2, " %") if metric == "accuracy" else (1, 4, "")
    interval = "" if half is None else f" ± {half * unit:.{decimals}f}"
    return f"{value * unit:.{decimals}f}{interval}{sign}"


def field_of(record: Record, field: str) -> Any:
    """The value at a dotted name."""
    value: Any = record
    for key in field.split("."):
        value = value[key]
    return value
