"""What a table is made of: the runs below a folder that can be read, and published figures in the form of runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from fewshot.core.errors import FewshotError
from fewshot.report.labels import COLUMN, VARIATIONS, column_names, column_of, format_label, method_names
from fewshot.report.published import TRAINING_SHOT, UNKNOWN, VIEWS, published
from fewshot.report.records import Record, field_of, metric_of, read_record, task_name
from fewshot.report.statistics import ROUNDING

HERE, STEPS = "measured here", "protocol.adaptation_steps"


def read_runs(folder: Path) -> tuple[list[Record], list[str]]:
    """Every record below a folder, by steps, in the order of their paths, and one line for each that cannot be read.

    Raises:
        FewshotError: there is none, or none that can be read.
    """
    records: list[Record] = []
    complaints: list[str] = []
    paths = sorted(folder.rglob("record.json"))
    for path in paths:
        try:
            records += by_steps(read_record(path))
        except FewshotError as error:
            complaints.append(str(error))
    if not paths:
        raise FewshotError(
            f"no record.json below {folder}: make one with `python tools/train.py`, or say runs=<folder>"
        )
    if not records:
        more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        raise FewshotError(f"no record below {folder} can be read: {complaints[0]}{more}")
    return records, complaints


def by_steps(record: Record) -> list[Record]:
    """The record once for each number of adaptation steps that it was scored after, with the scores after these alone.

    `scores` is the heading of these in its `episodes.csv`.
    """
    metric, test = metric_of(record), record["test"]
    if not isinstance(test[metric], dict):
        return [{"scores": metric, **record}]
    return [
        {
            **record,
            "protocol": {**record["protocol"], "adaptation_steps": int(steps)},
            "test": {**test, metric: value, "ci95": test["ci95"][steps]},
            "scores": f"{metric}_{steps}",
        }
        for steps, value in test[metric].items()
    ]


def one_per_seed(runs: Sequence[Record], name: str) -> list[Record]:
    """Of the runs of one method on the same test episodes one for each seed: a test once more changes nothing.

    The run's own record, whose folder lies highest, stays; a further test may repeat it, as one after more numbers of
    steps does.

    Raises:
        FewshotError: two of one seed have different scores; `name` says what they are runs of.
    """
    own: dict[int, Record] = {}
    for run in sorted(runs, key=depth):
        first, metric = own.setdefault(run["seed"], run), metric_of(run)
        one, other = first["test"][metric], run["test"][metric]
        if not math.isclose(one, other, rel_tol=ROUNDING):
            raise FewshotError(
                f"{first['folder']} and {run['folder']} are both {name} with seed {run['seed']}, and their {metric} "
                f"is {one:.6g} and {other:.6g}: take one of them out of the folder"
            )
    return list(own.values())


def depth(run: Record) -> int:
    """How deep a run's folder lies: a test once more lies below the run's own."""
    return len(Path(run["folder"]).parts)


def published_records(algorithms: Container[str] | None = None, datasets: Container[str] | None = None) -> list[Record]:
    """Published figures of these algorithms and datasets, as records; `published` holds the figure itself."""
    return [
        _as_record(figure)
        for figure in published()
        if (algorithms is None or figure["method"] in algorithms)
        and (datasets is None or figure["dataset"] in datasets)
    ]


def _as_record(figure: dict[str, Any]) -> Record:
    known = {key: None if value == UNKNOWN else value for key, value in figure.items()}
    task = {"dataset": figure["dataset"], "way": figure["way"] or 1, "shot": figure["shot"]}  # a regression has way 1
    unit = 100 if figure["metric"] == "accuracy" else 1
    return {
        **task,
        "shot": None,  # that of the test for which the training was
        "train": {
            "shot": next((TRAINING_SHOT[caveat] for caveat in figure["caveats"] if caveat in TRAINING_SHOT), None),
            "query": None,
        },
        "algorithm": figure["method"],
        "backbone": known["backbone"],
        "query": known["query"],
        "seed": None,
        "recipe": None,
        "protocol": {
            **task,
            **{key: known[key] for key in ("query", "episodes", "setting", "adaptation_steps")},
            **({"view": VIEWS[figure["dataset"]]} if figure["dataset"] in VIEWS else {}),
            "train_on_val": None,
        },
        "test": {
            figure["metric"]: figure["value"] / unit,
            "ci95": None if figure["interval"] is None else figure["interval"] / unit,
            "episodes": known["episodes"],
        },
        "input_size": known["input_size"],
        "folder": figure["source"],
        "published": figure,
    }


def named(runs: list[Record], published: list[Record], shown: Sequence[str] = ()) -> list[Record]:
    """All of them with `method`, `task` and `source`, and `order`, the place of the task's column among the measured.

    A method's name leaves out what the fields that are `shown` in the table say. A published figure stands in the
    measured column of its task; where there are several, which differ in what the source may not even state, or where
    that is of another view than the figure's, in a column of its own.
    """
    names = column_names(runs)
    order = {column: place for place, column in enumerate(names)}
    view_place = list(COLUMN).index("protocol.view")
    tasks: dict[Any, dict[str, Any]] = defaultdict(dict)  # {task: {name of a column: its view}}
    for column, name in names.items():
        tasks[column[:3]][name] = column[view_place]
    lines = []
    for method, run in zip(method_names(runs, shown), runs, strict=True):
        column = column_of(run)
        line = {"method": method, "task": names[column], "source": HERE, "order": order[column]}
        lines.append({**run, **line, "input_size": _input_size(run)})
    for run in published:
        task = tuple(run["protocol"][key] for key in ("dataset", "way", "shot"))
        plain = task_name(run["protocol"])
        own = run["protocol"].get("view")
        measured = [name for name, view in tasks[task].items() if own in (None, view)] if task in tasks else [plain]
        backbone, setting = run["backbone"], run["protocol"]["setting"]
        line = {
            "method": f"{run['algorithm']} ({backbone})" if backbone else run["algorithm"],
            "task": measured[0] if len(measured) == 1 else f"{plain}, as published",
            "source": "{source} ({version})".format(**run["published"]),
            "order": len(names),
        }
        line["method"] += f", {setting or 'setting unknown'}"
        if metric_of(run) == "mse" and STEPS not in shown:  # errors are published after several numbers of steps
            line["method"] += f", {format_label(VARIATIONS[STEPS], run['protocol']['adaptation_steps'])}"
        lines.append({**run, **line})
    if "protocol.setting" in shown:
        for line in lines:
            line["method"] = line["method"].replace(f", {line['protocol']['setting'] or 'setting unknown'}", "", 1)
    return lines


def _input_size(run: Record) -> int | None:
    """The side of the images, or of those that the features were made of, where the data's reader told it."""
    for field in ("data.about.size", "data.about.images.size"):
        try:
            size = field_of(run, field)
        except (KeyError, TypeError):
            continue
        if isinstance(size, int):
            return size
    return None
