"""Runs to the cells of a table: which row and column each falls into, and which cells are best.

Two rules keep a table honest. Scores share a column only where every test episode was the same, or where rows or
columns say what differs; and they are averaged only over training seeds of runs that differ in nothing else the record
knows. A published figure joins a column whose task, and view where its source tells it, is its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.report.gather import HERE, named, one_per_seed
from fewshot.report.labels import COLUMN, CONFIGURATION, VARIATIONS, column_of, method_place, natural_sort_key
from fewshot.report.records import Record, field_of
from fewshot.report.statistics import against_best, scores

# In what runs of one cell may not differ, first what a person would look at first.
ONE_METHOD = (
    "algorithm", "backbone", "recipe", "protocol.setting", "protocol.train_on_val",
    *COLUMN, "dataset", "way", "shot", *VARIATIONS, *CONFIGURATION, "published.source", "published.label",
)  # fmt: skip
# What the tests of a published figure and of runs have to share in one column; of the rest sources tell too little.
ONE_TASK = ("protocol.dataset", "protocol.way", "protocol.shot", "protocol.view")


@dataclass(frozen=True)
class Layout:
    """Rows and columns by field; besides a record's own: `method` and `task`, which are names that tell all runs apart,
    `source` and `input_size`. Without columns a cell is spread over two: its mean and its interval."""

    rows: dict[str, str] = field(default_factory=lambda: {"method": "method"})  # heading: field
    cols: Sequence[str] = ("task",)
    metric: str = "accuracy"
    title: str = ""

    @property
    def lower(self) -> bool:
        """Whether the lower score is the better one."""
        return self.metric == "mse"


@dataclass
class Cell:
    """One method's runs on one task, differing in seed only, or one published figure."""

    row: tuple[Hashable, ...]
    column: tuple[Hashable, ...]
    runs: list[Record]
    p: float | None = None  # corrected, of its comparison with the best of its column, 1 for that; None: not compared

    @property
    def figure(self) -> dict[str, Any] | None:
        """The published figure that this is, if it is one."""
        return self.runs[0].get("published")

    def mean(self, metric: str) -> float:
        return sum(run["test"][metric] for run in self.runs) / len(self.runs)

    def over_seeds(self, metric: str) -> float | None:
        """Half width of the 95 % Student t interval over training runs."""
        if len(self.runs) < 2:
            return None
        return float(stats.t.ppf(0.975, len(self.runs) - 1) * stats.sem([run["test"][metric] for run in self.runs]))

    def over_episodes(self) -> float | None:
        """Half width of the 95 % interval over the test episodes of a single run: the runs' mean."""
        halves = [run["test"]["ci95"] for run in self.runs]
        known = [half for half in halves if half is not None and not math.isnan(half)]
        return sum(known) / len(known) if len(known) == len(halves) else None


def cells(
    runs: list[Record], published: list[Record], layout: Layout
) -> tuple[list[Cell], list[tuple[Hashable, ...]], list[str]]:
    """The cells in the order of rows, then columns; the columns; and a line for each run that cannot be compared.

    Raises:
        FewshotError: a cell would average, or a column would compare, what was not measured alike.
    """
    fields = list(layout.rows.values())
    lines = named(runs, published, [*fields, *layout.cols])
    groups: dict[tuple[tuple[Hashable, ...], tuple[Hashable, ...]], list[Record]] = defaultdict(list)
    for line in lines:
        groups[_values(line, fields), _values(line, layout.cols)].append(line)
    made = [Cell(row, column, group) for (row, column), group in groups.items()]
    for cell in made:
        _refuse_mixture(cell)
        cell.runs = one_per_seed(cell.runs, "{method} on {task}".format(**cell.runs[0]))
    _refuse_mixed_columns(made, layout)
    rows: dict[Hashable, Any] = {}
    places: dict[Hashable, Any] = {}
    for cell in made:
        for found, key, names in ((rows, cell.row, fields), (places, cell.column, layout.cols)):
            place = [_place(name, cell.runs[0]) for name in names]
            found[key] = min(place, found.get(key, place))
    made.sort(key=lambda cell: (rows[cell.row], places[cell.column]))
    columns = sorted({cell.column for cell in made}, key=places.__getitem__)
    return made, columns, _compare(made, layout)


def _values(line: Record, fields: Sequence[str]) -> tuple[Hashable, ...]:
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
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        values.append(value)
    return tuple(values)


def _place(name: str, line: Record) -> Any:
    """A sort key of one field: algorithms from simple to elaborate, tasks as numbers, what others report first."""
    value = _values(line, [name])[0]
    if name in ("method", "algorithm"):
        return method_place(str(value), line["algorithm"])
    if name == "task":
        return natural_sort_key([*(line["protocol"][key] for key in ("dataset", "way", "shot")), line["order"]])
    if name == "source":
        return natural_sort_key([int(value == HERE), value])
    return natural_sort_key([value])


def _refuse_mixture(cell: Cell) -> None:
    """Raise where runs of one cell differ in more than the seed."""
    first = cell.runs[0]
    for other in cell.runs[1:]:
        difference = _difference(first, other, ONE_METHOD)
        if difference or "published" in first:
            name, text = difference or ("source", "nothing")
            raise FewshotError(
                f"{first['folder']} and {other['folder']} fall into one cell but differ in {text}: "
                f"add {name} to rows or cols"
            )


def _refuse_mixed_columns(made: list[Cell], layout: Layout) -> None:
    """Raise where a column holds different test episodes and neither rows nor columns say so."""
    told = [place for place, name in enumerate(layout.rows.values()) if name in COLUMN or name == "task"]
    seen: dict[Hashable, Record] = {}
    for cell in sorted(made, key=lambda cell: cell.figure is not None):  # figures last: they are held against runs
        run, key = cell.runs[0], (cell.column, *(cell.row[place] for place in told))
        if cell.figure is not None and key not in seen:
            continue
        first = seen.setdefault(key, run)
        if difference := _difference(first, run, tuple(COLUMN) if cell.figure is None else ONE_TASK):
            name, text = difference
            raise FewshotError(
                f"{first['folder']} and {run['folder']} would share a column but their tests differ in {text}: "
                f"add {name if cell.figure is None else 'task'} to rows or cols"
            )


def _difference(one: Record, other: Record, fields: Sequence[str]) -> tuple[str, str] | None:
    """The first field in which two lines differ, and words that say how."""
    for name in fields:
        try:
            values = field_of(one, name), field_of(other, name)
        except (KeyError, TypeError):
            continue
        if values[0] != values[1]:
            return name, "{} ({:.40} and {:.40})".format(name, *map(str, values))
    return None


def _compare(made: list[Cell], layout: Layout) -> list[str]:
    """Set the p of every cell that can be compared with the best of its column; say which runs cannot be, and why."""
    complaints: set[str] = set()  # scores after several numbers of steps stand in one file, which is said once
    columns: dict[Hashable, list[tuple[Cell, np.ndarray]]] = defaultdict(list)
    for cell in made:
        if cell.figure is not None:
            continue
        found: list[np.ndarray] = []
        for run in cell.runs:
            try:
                found.append(scores(run))
            except FewshotError as error:
                complaints.add(f"{error} (its mean stands in the table, compared with no other)")
        if len(found) == len(cell.runs) and len(found[0]) > 1:
            columns[cell.column, column_of(cell.runs[0])].append((cell, np.mean(found, axis=0)))
    several = [column for column in columns.values() if len(column) > 1]
    found_p = against_best([[each for _, each in column] for column in several], layout.lower)
    for column, p_values in zip(several, found_p, strict=True):
        for (cell, _), p in zip(column, p_values, strict=True):
            cell.p = p
    return sorted(complaints)
