"""The lines of a table: the runs below a folder, and published figures in the form of runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.report.labels import (
    about_images,
    column_names,
    column_of,
    label_test,
    method_names,
    setting_label,
    short_task,
)
from fewshot.report.records import Record, find_records, metric_of, protocol_name, read_record, task_name
from fewshot.report.statistics import ROUNDING
from fewshot.report.traits import config_of

COMMON = "common"


def gather_runs(*folders: Path) -> tuple[list[Record], list[str]]:
    """Every record below some folders, split by adaptation steps, sorted by path; and a line for each unreadable one.

    Raises:
        FewshotError: there is no record below one of them, or none can be read.
    """
    records: list[Record] = []
    complaints: list[str] = []
    for path in dict.fromkeys(path for folder in folders for path in find_records(folder, complaints)):
        try:
            records += split_by_steps(read_record(path))
        except FewshotError as error:
            complaints.append(str(error))
    if not records:
        more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        raise FewshotError(f"no record below {' and '.join(map(str, folders))} can be read: {complaints[0]}{more}")
    return records, complaints


def split_by_steps(record: Record) -> list[Record]:
    """One record for each number of adaptation steps that the run was tested with.

    The field `scores` of each is its column in `episodes.csv`, and `config` the hash of the settings that set methods
    apart, where the record has them.
    """
    metric, test = metric_of(record), record["test"]
    record = {**record, "config": config_of(record)}
    if not isinstance(test[metric], dict):
        return [{"scores": metric, **record}]
    r2 = test.get("r2") or {}
    return [
        {
            **record,
            "protocol": {**record["protocol"], "adaptation_steps": int(steps)},
            "test": {**test, metric: value, "ci95": test["ci95"][steps], "r2": r2.get(steps)},
            "scores": f"{metric}_{steps}",
        }
        for steps, value in test[metric].items()
    ]


def select_protocol(runs: Sequence[Record], name: str | None) -> tuple[list[Record], str]:
    """The runs that were tested by a protocol; all of them without a name, or where none has the default, common.

    Returns:
        The runs, and what shows the tests that were left out, and how many these are; empty if none was.

    Raises:
        FewshotError: no run was tested by it.
    """
    tests = Counter(protocol_name(run) for run in {run["folder"]: run for run in runs}.values())
    if name is None or not tests:
        return list(runs), ""
    others = _ways_to_see(Counter({other: count for other, count in tests.items() if other != name}))
    if name not in tests and name == COMMON:  # the default: better all of them than nothing
        return list(runs), ""
    if name not in tests:
        raise FewshotError(f"no run was tested by the protocol {name}: choose {others}")
    return [run for run in runs if protocol_name(run) == name], others


def select_tests(runs: Sequence[Record]) -> tuple[list[Record], str]:
    """Of each method's tests of a task those by the protocols common and paper; without any, the one nearest to common.

    Returns:
        The runs, and what shows the tests that were left out, and how many these are; empty if none was.
    """
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for run in runs:
        protocol = run["protocol"]
        task = [str(protocol[key]) for key in ("dataset", "way", "shot", "setting", "adaptation_steps")]
        groups[run["algorithm"], run["config"], *task].append(run)
    chosen: list[Record] = []
    for group in groups.values():
        named = [run for run in group if protocol_name(run) in (COMMON, "paper")]
        nearest = label_test(min(group, key=_distance_from_common))
        chosen += named or [run for run in group if label_test(run) == nearest]
    folders = {run["folder"]: run for run in runs}
    left_out = Counter(protocol_name(folders[each]) for each in folders.keys() - {run["folder"] for run in chosen})
    return chosen, _ways_to_see(left_out, "layout=comparison ") if left_out else ""


def _distance_from_common(run: Record) -> tuple[bool, bool, int]:
    protocol = run["protocol"]
    return protocol["query"] != 15, protocol["rotations"] not in (None, "none"), -protocol["episodes"]


def _ways_to_see(tests: Counter[str], layout: str = "") -> str:
    """How many tests each protocol has, by the words that show them."""
    return " or ".join(
        f"{layout}layout.protocol={name} ({count} test{'s' * (count > 1)})" for name, count in sorted(tests.items())
    )


def one_per_seed(runs: Sequence[Record], name: str) -> list[Record]:
    """One run of each seed, of runs of one method on the same test episodes.

    A later test may repeat the score of the run's own record. The run whose folder lies highest is kept. Where nothing
    was trained, seeds with one score are one run.

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
    first, *others = kept.values()
    if others and all(run["test"] == first["test"] and not run["cost"]["train_tasks"] for run in kept.values()):
        return [first]
    return [first, *others]


def label_rows(
    runs: list[Record], published: list[Record], shown: Sequence[str] = (), mixed: bool = False
) -> list[Record]:
    """The runs and published figures with the fields that records lack and tables show.

    These are `method`, `setting`, `task`, `source` (empty for a run), `input_size`, `order`, the place of the task's
    column, and `name_note`, what a number in the method's name stands for. A published figure stands in the measured
    column of its task. Where there are several, or where the figure is for other functions than the runs, it stands in
    a column of its own.

    Args:
        shown: fields that the table shows; the names of methods leave them out.
        mixed: a task has one column, whatever its test episodes are.
    """
    lines = [*runs, *published]
    with_dataset = len({line["protocol"]["dataset"] for line in lines}) > 1
    methods, notes = method_names(lines, shown)
    names = column_names([_any_episodes(run) if mixed else run for run in runs], with_dataset)
    order, rows = list(names), []
    for method, note, line in zip(methods, notes, lines, strict=True):
        if "published" in line:
            task = _task_of_figure(line, rows, with_dataset)
            fields = {"task": task, "source": line["published"]["short"], "order": len(order)}
        else:
            column = column_of(_any_episodes(line) if mixed else line)
            fields = {"task": names[column], "source": "", "order": order.index(column)}
            fields["input_size"] = about_images(line).get("size")
        rows.append({**line, **fields, "method": method, "setting": setting_label(line), "name_note": note})
    return rows


def _any_episodes(run: Record) -> Record:
    """The run as one of any episodes of its task; errors keep the functions that they are of."""
    kept = {key: run["protocol"][key] for key in ("dataset", "way", "shot")}
    unknown = dict.fromkeys(("split", "query", "episodes", "episode_seed", "rotations", "view", "manifest"))
    view = {"view": run["protocol"]["view"]} if metric_of(run) == "mse" else {}
    return {**run, "protocol": {**run["protocol"], **unknown, **kept, **view}, "data": {"fingerprint": ""}}


def _task_of_figure(figure: Record, rows: list[Record], with_dataset: bool) -> str:
    """The column of a published figure beside these labelled runs."""
    protocol, task = figure["protocol"], task_name(figure["protocol"])
    same_task = [row for row in rows if "published" not in row and task_name(row["protocol"]) == task]
    columns = {row["task"] for row in same_task if protocol.get("view") in (None, row["protocol"]["view"])}
    name = short_task(protocol, with_dataset)
    if len(columns) == 1:
        return columns.pop()
    return f"{name}, as published" if same_task else name
