"""The cells of a table: which runs share a row and a column, and which cells are best.

Two rules keep a table honest. A column holds scores on the same test episodes, unless rows or columns name the
difference. A cell averages runs that differ in nothing but the seed. A published figure joins the column of its task,
and of its functions where it is an error of a regression.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.report.gather import HERE, label_rows, one_per_seed
from fewshot.report.labels import COLUMN, CONFIGURATION, VARIATIONS, column_of, method_sort_key, natural_sort_key
from fewshot.report.records import Record, field_of, metric_of
from fewshot.report.statistics import compare_with_best, read_scores

# The fields in which runs of one cell must agree; the ones that a person would look at first come first.
ONE_METHOD = (
    "algorithm", "backbone", "recipe", "protocol.setting", "protocol.train_on_val",
    *COLUMN, "dataset", "way", "shot", *VARIATIONS, *CONFIGURATION,
    "published.source", "published.label", "published.value",
)  # fmt: skip
# The fields in which a published figure and the runs of its column must agree; sources do not state the others.
ONE_TASK = ("protocol.dataset", "protocol.way", "protocol.shot", "protocol.view")

Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class Layout:
    """Which fields make rows and columns.

    Besides a record's own fields there are `method` and `task`, names that tell all runs apart, `source` and
    `input_size`. Without columns, a cell takes two columns: its mean and its interval.
    """

    rows: dict[str, str] = field(default_factory=lambda: {"method": "method"})  # heading: field
    cols: Sequence[str] = ("task",)
    metric: str = "accuracy"
    title: str = ""


@dataclass
class Cell:
    """One method's runs on one task, which differ in the seed only, or one published figure."""

    row: Key
    column: Key
    runs: list[Record]
    p: float | None = None  # corrected p value against the best of its column, 1 for the best; None: not compared

    @property
    def figure(self) -> dict[str, Any] | None:
        """The published figure, if the cell is one."""
        return self.runs[0].get("published")

    @property
    def metric(self) -> str:
        """The metric of the scores: accuracy or mse."""
        return metric_of(self.runs[0])

    def mean(self) -> float:
        """The mean over the runs."""
        return sum(run["test"][self.metric] for run in self.runs) / len(self.runs)

    def over_seeds(self) -> float | None:
        """Half width of the 95 % Student t interval over several runs."""
        if len(self.runs) < 2:
            return None
        from scipy import stats

        scores = [run["test"][self.metric] for run in self.runs]
        return float(stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores))

    def over_episodes(self) -> float | None:
        """Half width of the 95 % interval over the test episodes of one run: the mean of the runs' half widths."""
        halves = [run["test"]["ci95"] for run in self.runs]
        return None if None in halves else sum(halves) / len(halves)


def build_cells(runs: list[Record], published: list[Record], layout: Layout) -> tuple[list[Cell], list[Key], list[str]]:
    """The cells in the order of rows, then columns; the columns; and a line for each run that cannot be compared.

    Raises:
        FewshotError: runs that were not measured alike would share a cell or a column.
    """
    fields = list(layout.rows.values())
    groups: dict[tuple[Key, Key], list[Record]] = defaultdict(list)
    for line in label_rows(runs, published, [*fields, *layout.cols]):
        groups[_values(line, fields), _values(line, layout.cols)].append(line)
    cells = []
    for (row, column), group in groups.items():
        for other in group[1:]:
            _check_alike(group[0], other, ONE_METHOD, "fall into one cell but differ in")
        cells.append(Cell(row, column, one_per_seed(group, "{method} on {task}".format(**group[0]))))
    _check_columns(cells, layout)
    rows, columns = {}, {}
    for cell in cells:
        for sort_keys, key, names in ((rows, cell.row, fields), (columns, cell.column, layout.cols)):
            sort_key = [_sort_key(name, cell.runs[0]) for name in names]
            sort_keys[key] = min(sort_key, sort_keys.get(key, sort_key))
    cells.sort(key=lambda cell: (rows[cell.row], columns[cell.column]))
    return cells, sorted(columns, key=columns.__getitem__), _compare(cells, lower_is_better=layout.metric == "mse")


def _values(line: Record, fields: Sequence[str]) -> Key:
    values = []
    for name in fields:
        try:
            value = field_of(line, name)
        except (KeyError, TypeError):
            if "published" not in line:
                raise FewshotError(f"{line['folder']}: its record has no field {name}; see its record.json") from None
            value = None
        if isinstance(value, dict):
            raise FewshotError(f"{name} is a group of fields; name one of them, such as {name}.{next(iter(value), '')}")
        values.append(", ".join(map(str, value)) if isinstance(value, list) else value)
    return tuple(values)


def _sort_key(name: str, line: Record) -> Any:
    """A sort key of one field: simple algorithms first, tasks by their numbers, published figures before runs."""
    value = _values(line, [name])[0]
    if name in ("method", "algorithm"):
        return method_sort_key(str(value), line["algorithm"])
    if name == "task":
        return natural_sort_key([*(line["protocol"][key] for key in ("dataset", "way", "shot")), line["order"]])
    if name == "source":
        return natural_sort_key([int(value == HERE), value])
    return natural_sort_key([value])


def _check_columns(cells: list[Cell], layout: Layout) -> None:
    """Raise FewshotError for a column of different test episodes where neither rows nor columns name the difference."""
    named = [i for i, name in enumerate(layout.rows.values()) if name in COLUMN or name == "task"]
    firsts: dict[Hashable, Record] = {}
    for cell in sorted(cells, key=lambda cell: cell.figure is not None):  # published figures after the runs
        run, key = cell.runs[0], (cell.column, *(cell.row[i] for i in named))
        if cell.figure is None:
            _check_alike(firsts.setdefault(key, run), run, COLUMN, "would share a column but their tests differ in")
        elif key in firsts:
            _check_alike(firsts[key], run, ONE_TASK, "would share a column but their tests differ in", "task")


def _check_alike(one: Record, other: Record, fields: Iterable[str], problem: str, remedy: str = "") -> None:
    """Raise FewshotError with the first field in which two records differ, and the field that would set them apart."""
    for name in fields:
        try:
            values = field_of(one, name), field_of(other, name)
        except (KeyError, TypeError):  # a source does not state all fields
            continue
        if values[0] != values[1]:
            difference = "{} ({:.40} and {:.40})".format(name, *map(str, values))
            raise FewshotError(
                f"{one['folder']} and {other['folder']} {problem} {difference}: add {remedy or name} to rows or cols"
            )


def _compare(cells: list[Cell], lower_is_better: bool) -> list[str]:
    """Set the p value of each cell that can be compared with the best of its column; why others cannot be."""
    complaints: set[str] = set()
    columns: dict[Hashable, list[tuple[Cell, np.ndarray]]] = defaultdict(list)
    for cell in cells:
        if cell.figure is not None:
            continue
        scores = []
        for run in cell.runs:
            try:
                scores.append(read_scores(run))
            except FewshotError as error:
                complaints.add(f"{error} (its mean stands in the table, compared with no other)")
        if len(scores) == len(cell.runs) and len(scores[0]) > 1:
            columns[cell.column, column_of(cell.runs[0])].append((cell, np.mean(scores, axis=0)))
    compared = [column for column in columns.values() if len(column) > 1]
    p_values = compare_with_best([[scores for _, scores in column] for column in compared], lower_is_better)
    for column, p_column in zip(compared, p_values, strict=True):
        for (cell, _), p in zip(column, p_column, strict=True):
            cell.p = p
    return sorted(complaints)
