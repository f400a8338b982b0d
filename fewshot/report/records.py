"""Records: the result of one test of a run, as `record.json` and `episodes.csv`, readable without this code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot.core.errors import FewshotError, one_line
from fewshot.core.files import find_below, write_atomically
from fewshot.core.paths import expand_path

if TYPE_CHECKING:
    import numpy as np

FORMAT = 2
Record = dict[str, Any]
METRICS = ("accuracy", "mse")
METRIC_NAMES = {"accuracy": "accuracy in per cent", "mse": "mean squared error"}
SCORES = {"accuracy": (100, 2), "mse": (1, 4)}  # unit and decimals in tables and pictures
PREDICTIONS = "predictions.csv"  # beside a record, where one was asked for

NUMBER = (int, float)
TEXT, COUNT, NONE = (str,), (int,), type(None)
# The fields of every record, by the types that they may have.
NEEDED: dict[tuple[type, ...], str] = {
    TEXT: "algorithm dataset protocol.dataset protocol.split protocol.manifest protocol.setting config code.version "
    "data.fingerprint",
    COUNT: "way shot seed protocol.way protocol.shot protocol.query protocol.episodes protocol.episode_seed "
    "test.episodes cost.train_tasks train.shot train.query",
    (bool,): "protocol.train_on_val",
    (*TEXT, NONE): "backbone recipe protocol.view protocol.selection cost.device code.commit",
    (*COUNT, NONE): "cost.gradient_evaluations",
    (*NUMBER, NONE): "cost.train_seconds cost.tasks_per_second cost.peak_memory_bytes",
    (bool, NONE): "code.dirty",
    (str, bool, NONE): "protocol.rotations",
    (int, str, list, NONE): "protocol.adaptation_steps",
    (*NUMBER, NONE, dict): "test.ci95",
}
# The fields that older records lack.
OPTIONAL: dict[tuple[type, ...], str] = {
    TEXT: "protocol.name train.fingerprint",
    (*COUNT, NONE): "train.way train.steps train.paper_steps",
    (dict, NONE): "settings",
    (dict,): "data.about",
    (list,): "code.training recipe_changes",
    (int, float, NONE): "cost.nan_guarded_steps",
}


def write_record(folder: Path, record: Mapping[str, Any], scores: Mapping[str, np.ndarray]) -> None:
    """Write `episodes.csv` and then `record.json`, so that a new folder with a record is complete.

    An old record that a dying process leaves beside new scores is found by `read_scores`.

    Args:
        scores: the scores [episodes] by column of `episodes.csv`. The column is the metric, such as `accuracy`. A test
            after several numbers of adaptation steps has a column for each: `mse_1`, `mse_5`, `mse_10`. In regression
            a last column `variance` has the error of predicting an episode's queries by their mean: the record's R2 is
            1 - mean error / mean variance.

    Raises:
        ValueError: the columns have different lengths.
    """
    rows = (",".join(map(_episode_score, scores, row)) for row in zip(*scores.values(), strict=True))
    lines = [",".join(["episode", *scores]), *(f"{episode},{row}" for episode, row in enumerate(rows))]
    write_atomically(folder / "episodes.csv", ("\n".join(lines) + "\n").encode())
    write_atomically(folder / "record.json", (json.dumps(record, indent=1) + "\n").encode())


def _episode_score(column: str, score: float) -> str:
    """Six decimals of an accuracy; of an error, which may be small, the nine digits that tell any two float32 apart."""
    return f"{score:.6f}" if column.partition("_")[0] == "accuracy" else f"{score:.9g}"


def find_records(folder: str | Path, unread: list[str] | None = None) -> list[Path]:
    """The path of every `record.json` below a folder, sorted.

    Args:
        unread: gets a line for each folder that cannot be read, where there are records elsewhere. None: an error.

    Raises:
        FewshotError: there is none, or a folder cannot be read.
    """
    paths, closed = find_below(expand_path(folder), "record.json")
    if closed and (unread is None or not paths):
        raise FewshotError(closed[0])
    if unread is not None:
        unread += closed
    if not paths:
        raise FewshotError(
            f"no record.json below {folder}: make one with `python tools/train.py`, or set runs=<folder>"
        )
    return paths


def read_records(folder: str | Path) -> list[Record]:
    """Every record below a folder, in the order of their paths.

    Raises:
        FewshotError: there is none, or one cannot be read.
    """
    return [read_record(path) for path in find_records(folder)]


def read_record(path: str | Path) -> Record:
    """Read and check one `record.json`; the record gets a field `folder`, the folder of the file.

    `test.accuracy` (a fraction) or `test.mse`, and `test.ci95`, are numbers. After a test with several numbers of
    adaptation steps they are mappings from each of these, as text, to a number.

    Raises:
        FewshotError: the file is not a record of this format, or a field is missing or has an impossible value.
    """
    path = expand_path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FewshotError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    form = record.get("format") if isinstance(record, dict) else None
    if type(form) is not int or form < 1:
        raise FewshotError(f'{path} is not a record: it lacks `"format": {FORMAT}`')
    if form != FORMAT:
        remedy = "update the code" if form > FORMAT else "test the run again"
        raise FewshotError(f"{path} is a record of format {form}, and this code reads format {FORMAT}: {remedy}")
    for types, fields in (*NEEDED.items(), *OPTIONAL.items()):
        for field in fields.split():
            try:
                value = field_of(record, field)
            except (KeyError, TypeError):
                if fields in OPTIONAL.values():
                    continue
                raise FewshotError(f"{path} is not a complete record: it lacks {field}") from None
            if type(value) not in types:  # not isinstance: JSON's true is no way, shot or seed
                expected = " or ".join(kind.__name__ for kind in types)
                raise FewshotError(f"{path} is not a record: {field} is {value!r} in place of {expected}")
    scored, planned = field_of(record, "test.episodes"), field_of(record, "protocol.episodes")
    if scored != planned:
        raise FewshotError(f"{path} has scores of {scored} of its {planned} test episodes: test the run again")
    _check_scores(record, path)
    return {**record, "folder": str(path.parent)}


def _check_scores(record: Record, path: Path) -> None:
    """Raise FewshotError for impossible scores, and for scores, intervals and steps that do not belong together."""
    test, steps = record["test"], record["protocol"]["adaptation_steps"]
    if sum(metric in test for metric in METRICS) != 1:
        raise FewshotError(f"{path} is not a complete record: it lacks test.accuracy or test.mse, or has both")
    metric = metric_of(record)
    scores, halves = ({"": part} if not isinstance(part, dict) else part for part in (test[metric], test["ci95"]))
    counts = steps if isinstance(steps, list) else [""]
    whole = not isinstance(steps, list) or all(type(count) is int for count in steps)
    if not counts or not whole or not set(scores) == set(halves) == set(map(str, counts)):
        raise FewshotError(
            f"{path}: protocol.adaptation_steps {steps} do not match test.{metric} {test[metric]} and "
            f"test.ci95 {test['ci95']}: all are for one number of steps, or for the same several"
        )
    allowed, highest = ("a fraction from 0 to 1", 1.0) if metric == "accuracy" else ("a number of 0 or more", 1e300)
    for score in scores.values():
        if type(score) not in NUMBER or not 0 <= score <= highest:  # NaN is refused too
            raise FewshotError(f"{path} has test.{metric} {score}, not {allowed}")
    for half in halves.values():
        if half is not None and (type(half) not in NUMBER or not half >= 0):
            raise FewshotError(f"{path} has test.ci95 {half}, not null or a number of 0 or more")


def metric_of(record: Record) -> str:
    """The metric of a record's scores: `accuracy`, or `mse`, the mean squared error of a regression."""
    return next(metric for metric in METRICS if metric in record["test"])


def extractor_of(record: Record) -> dict[str, Any]:
    """What is known of the extractor whose features or weights a run had; empty without one."""
    extractor: dict[str, Any] = record["data"].get("about", {}).get("extractor", {})
    return extractor


def protocol_name(record: Record) -> str:
    """The protocol of the test without its changed values: `common` of `common, query=5`; `own` for older records."""
    return record["protocol"].get("name", "own").partition(",")[0]


def task_name(task: Mapping[str, Any]) -> str:
    """Dataset, way and shot: `omniglot 5-way 1-shot`. A regression has way 1 and no way in its name."""
    way = "" if task["way"] == 1 else f"{task['way']}-way "
    return f"{task['dataset']} {way}{task['shot']}-shot"


def summary_of_run(record: Record) -> str:
    """What was trained, in a few words: `maml mini 5-way 1-shot, seed 0`."""
    return f"{record['algorithm']} {task_name(record)}, seed {record['seed']}"


def summary(record: Record, folder: Path) -> str:
    """One line for a person: the run, its score and how it was tested."""
    test, protocol, metric = record["test"], record["protocol"], metric_of(record)
    if isinstance(test[metric], dict):
        halves, r2 = test["ci95"], test.get("r2") or {}
        scores = [f"{_score(metric, score, halves[n], r2.get(n))} after {n}" for n, score in test[metric].items()]
        result = f"{', '.join(scores)} test step{'' if scores[-1].endswith(' 1') else 's'}"
    else:
        result = _score(metric, test[metric], test["ci95"], test.get("r2"))
    tested = protocol.get("name", "own") + (f", {protocol['setting']}" if metric == "accuracy" else "")
    about = record["data"].get("about", {})
    if about.get("images", about).get("classes") == "same":
        tested += ", classes seen in training"
    cost = record["cost"]
    minutes = (cost["train_seconds"] + (cost.get("extractor_seconds") or 0)) / 60  # as in a table's budget
    guarded = cost.get("nan_guarded_steps")
    warning = f" WARNING: {guarded} steps had a NaN and took the parameters as their gradient;" if guarded else ""
    return (
        f"{record['algorithm']} {task_name(protocol)}: {'MSE ' * (metric == 'mse')}{result} ({tested}; "
        f"recipe {record['recipe'] or 'none'}, {minutes:.1f} min of training)"
        f"{warning}  {folder}"
    )


def _score(metric: str, value: float, half: float | None, r2: float | None = None) -> str:
    interval = "" if half is None else f" ± {format_score(half, metric)}"
    explained = "" if r2 is None else f" (R2 {r2:.3f})"
    return f"{format_score(value, metric)}{interval}{' %' * (metric == 'accuracy')}{explained}"


def format_score(score: float, metric: str) -> str:
    """A score, or the half width of its interval, in the unit of tables; an error below their decimals has digits."""
    unit, decimals = SCORES[metric]
    small = metric == "mse" and 0 < score < 0.001
    return f"{score:.2g}" if small else f"{score * unit:.{decimals}f}"


def in_unit(field: str, value: Any) -> Any:
    """The value of a record's field: a score, such as `validation.accuracy`, in the unit of tables, others as it is."""
    return value * SCORES[_metric_in(field)][0] if _is_score(field, value) else value


def format_field(field: str, value: Any) -> str:
    """The value of a record's field as tables show it: a score as `format_score` does; empty for None."""
    if _is_score(field, value):
        return format_score(value, _metric_in(field))
    return "" if value is None else str(value)


def _metric_in(field: str) -> str:
    return field.rpartition(".")[2]


def _is_score(field: str, value: Any) -> bool:
    return _metric_in(field) in METRICS and isinstance(value, float)


def field_of(record: Record, field: str) -> Any:
    """The value of a field by its dotted name, such as `protocol.way`; names of settings have dots themselves.

    Raises:
        KeyError, TypeError: the record has no such field.
    """
    value: Any = record
    while field:
        if isinstance(value, Mapping) and field in value:
            return value[field]
        key, _, field = field.partition(".")
        value = value[key]
    return value


def field_names(record: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of the fields of a record that are no groups."""
    for name, value in record.items():
        yield from field_names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else (prefix + name,)
