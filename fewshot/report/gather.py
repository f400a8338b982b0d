"""The lines of a table: the runs below a folder, and published figures in the form of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.report.labels import VARIATIONS, column_names, column_of, format_label, method_names
from fewshot.report.records import Record, find_records, metric_of, read_record, task_name
from fewshot.report.statistics import ROUNDING

HERE, STEPS = "measured here", "protocol.adaptation_steps"


def read_runs(folder: Path) -> tuple[list[Record], list[str]]:
    """Every record below a folder, split by adaptation steps, sorted by path; and a line for each unreadable one.

    Raises:
        FewshotError: there is no record, or none can be read.
    """
    records: list[Record] = []
    complaints: list[str] = []
    for path in find_records(folder):
        try:
            records += split_by_steps(read_record(path))
        except FewshotError as error:
            complaints.append(str(error))
    if not records:
        more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        raise FewshotError(f"no record below {folder} can be read: {complaints[0]}{more}")
    return records, complaints


def split_by_steps(record: Record) -> list[Record]:
    """One record for each number of adaptation steps that the run was tested with.

    The field `scores` of each is its column in `episodes.csv`.
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
    """One run of each seed, of runs of one method on the same test episodes.

    A later test may repeat the score of the run's own record. The run whose folder lies highest is kept.

    Args:
        name: what the runs are runs of, for the message.

    Raises:
        FewshotError: two runs of one seed have different scores.
    """
    kept: dict[int, Record] = {}
    for run in sorted(runs, key=lambda run: len(Path(run["folder"]).parts)):
        first, metric = kept.setdefault(run["seed"], run), metric_of(run)
        one, other = first["test"][metric], run["test"][metric]
        if not math.isclose(one, other, rel_tol=ROUNDING):
            raise FewshotError(
                f"{first['folder']} and {run['folder']} are both {name} with seed {run['seed']}, and their {metric} "
                f"is {one:.6g} and {other:.6g}: take one of them out of the folder"
            )
    return list(kept.values())


def label_rows(runs: list[Record], published: list[Record], shown: Sequence[str] = ()) -> list[Record]:
    """The runs and published figures with the fields `method`, `task`, `source` and `order`.

    `order` is the place of the task's column. A published figure stands in the measured column of its task. Where
    there are several, or where the figure is for other functions than the runs, it stands in a column of its own.

    Args:
        shown: fields that the table shows; the names of methods leave them out.
    """
    names = column_names(runs)
    order, rows = list(names), []
    for method, run in zip(method_names(runs, shown), runs, strict=True):
        column, about = column_of(run), run["data"].get("about", {})
        labels = {"method": method, "task": names[column], "source": HERE, "order": order.index(column)}
        # The side of the images, or of the images behind features, where the data's reader reports it.
        rows.append({**run, **labels, "input_size": about.get("images", about).get("size")})
    rows += [{**figure, **_labels(figure, rows, shown), "order": len(names)} for figure in published]
    if "protocol.setting" in shown:
        for row in rows:
            row["method"] = row["method"].replace(f", {row['protocol']['setting'] or 'setting unknown'}", "", 1)
    return rows


def _labels(figure: Record, runs: list[Record], shown: Sequence[str]) -> dict[str, str]:
    """Method, task and source of a published figure beside these runs."""
    protocol, task = figure["protocol"], task_name(figure["protocol"])
    same_task = [run for run in runs if task_name(run["protocol"]) == task]
    columns = {run["task"] for run in same_task if protocol.get("view") in (None, run["protocol"]["view"])}
    method = f"{figure['algorithm']} ({figure['backbone']})" if figure["backbone"] else figure["algorithm"]
    method += f", {protocol['setting'] or 'setting unknown'}"
    if metric_of(figure) == "mse" and STEPS not in shown:  # errors are published after several numbers of steps
        method += f", {format_label(VARIATIONS[STEPS], protocol['adaptation_steps'])}"
    if not same_task:
        columns = {task}
    return {
        "method": method,
        "task": columns.pop() if len(columns) == 1 else f"{task}, as published",
        "source": "{source} ({version})".format(**figure["published"]),
    }
