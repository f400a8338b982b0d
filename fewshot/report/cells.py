"""The cells of a table: which runs share a row and a column, and which cells are best.

Two rules keep a table honest. Scores are compared on the same test episodes and in one setting only: the episodes make
the columns, or, in mixed columns, a footnote says what differs. A cell averages runs that differ in nothing but the
seed. A published figure joins the column of its task, and of its functions where it is an error of a regression.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.report.gather import COMMON, label_rows, one_per_seed
from fewshot.report.labels import COLUMN, column_of, label_test, method_sort_key, natural_sort_key
from fewshot.report.records import Record, field_names, field_of, metric_of, protocol_name
from fewshot.report.statistics import ci95, compare_with_best, read_scores
from fewshot.report.traits import VARIATIONS

TRAINING_DATA = "data.train_fingerprint"
# The fields in which runs of one cell must agree; the ones that a person would look at first come first.
ONE_METHOD = (
    "algorithm", "backbone", "recipe", "protocol.setting", "protocol.train_on_val",
    *COLUMN, "dataset", "way", "shot", *VARIATIONS, "config",
    "published.source", "published.label", "published.value",
    TRAINING_DATA, "data.about.extractor.images.train",
)  # fmt: skip
# The fields in which a published figure and the runs of its column must agree; sources do not state the others. In a
# regression the view is the functions; of images it says how they are cropped.
ONE_TASK = ("protocol.dataset", "protocol.way", "protocol.shot")
ONE_FUNCTION = (*ONE_TASK, "protocol.view")
# What rows or columns name, where tests that differ in it share a column, whatever else rows name.
ONE_KIND = (*ONE_TASK, "protocol.split", "protocol.rotations")  # and, of one dataset, the view
# In mixed columns the tests of one row are by one protocol on one set of images.
ONE_TEST = ("protocol.name", "data.fingerprint")

Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class Layout:
    """Which fields make rows and columns.

    Besides a record's own fields there are `method`, `setting` and `task`, names that tell all runs apart, `source`,
    `input_size` and `budget`, which joins the runs of a row. Without columns, a cell takes two: the score and the half
    width of its interval. Mixed columns hold scores of a task on any test episodes.
    """

    rows: dict[str, str] = field(default_factory=lambda: {"method": "method", "setting": "setting"})  # heading: field
    cols: Sequence[str] = ("task",)
    metric: str = "accuracy"
    title: str = ""
    mixed: bool = False

    @property
    def keys(self) -> list[str]:
        """The fields that make rows, in the order of the values of a cell's row."""
        return [name for name in self.rows.values() if name != "budget"]

    def values_of(self, row: Key) -> dict[str, Hashable]:
        """The values of a cell's row by their fields."""
        return dict(zip(self.keys, row, strict=False))  # hidden values follow


@dataclass
class Cell:
    """One method's runs on one task, which differ in the seed only, or one published figure."""

    row: Key  # the values of the layout's keys, and what else sets rows apart
    column: Key
    runs: list[Record]
    p: float | None = None  # corrected p value against the best of its column, 1 for the best; None: not compared
    reference: bool = True  # False in a mixed column for a test on other episodes than those that it compares
    unreadable: bool = False  # whether a run has no usable scores of its episodes, and so no comparison

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

    @property
    def merit(self) -> float:
        """The mean, or minus an error: higher is better."""
        return -self.mean() if self.metric == "mse" else self.mean()

    def r2(self) -> float | None:
        """R2 of a regression, the mean over the runs; None where a record lacks it."""
        values = [run["test"].get("r2") for run in self.runs]
        return None if None in values else sum(values) / len(values)

    def over_seeds(self) -> float | None:
        """Half width of the 95 % Student t interval over several runs."""
        if len(self.runs) < 2:
            return None
        return ci95(np.array([run["test"][self.metric] for run in self.runs]))

    def over_episodes(self) -> float | None:
        """Half width of the 95 % interval over the test episodes of one run: the mean of the runs' half widths."""
        halves = [run["test"]["ci95"] for run in self.runs]
        return None if None in halves else sum(halves) / len(halves)

    def half_width(self) -> float | None:
        """Half width of the interval in tables: over the episodes or, if that is wider, over several seeds.

        Two or three seeds may be alike by chance, and say nothing of other test episodes.
        """
        return max((half for half in (self.over_episodes(), self.over_seeds()) if half is not None), default=None)

    @property
    def wider_over_seeds(self) -> bool:
        """Whether the interval in tables is the one over seeds."""
        seeds = self.over_seeds()
        return seeds is not None and self.half_width() == seeds


def build_cells(runs: list[Record], published: list[Record], layout: Layout) -> tuple[list[Cell], list[Key], list[str]]:
    """The cells in the order of rows, then columns; the columns; and a line for each run that cannot be compared.

    Raises:
        FewshotError: runs that were not measured alike would share a cell or a column.
    """
    groups: dict[tuple[Key, Key], list[Record]] = defaultdict(list)
    for line in label_rows(runs, published, [*layout.keys, *layout.cols], layout.mixed):
        groups[_row(line, layout), _values(line, layout.cols)].append(line)
    cells = []
    for (row, column), group in groups.items():
        # Features of extractors that were trained alike are alike, though rounding tells them apart.
        on_features = _value(group[0], "data.features_fingerprint", None) is not None
        fields = [name for name in ONE_METHOD if not (on_features and name == TRAINING_DATA)]
        for other in group[1:]:
            _check_alike(group[0], other, fields, "fall into one cell but differ in")
        cells.append(Cell(row, column, one_per_seed(group, "{method} on {task}".format(**group[0]))))
    _check_columns(cells, layout)
    rows, columns, reference = {}, {}, find_reference(cells)
    if layout.mixed:
        _mark_reference(cells, layout, reference)
    for cell in cells:
        for sort_keys, key, names in ((rows, cell.row, layout.keys), (columns, cell.column, layout.cols)):
            sort_key = [_sort_key(name, cell.runs[0]) for name in names]
            sort_key.append(_rank(cell.runs[0], reference) if layout.mixed and cell.figure is None else [])
            sort_keys[key] = min(sort_key, sort_keys.get(key, sort_key))
    cells.sort(key=lambda cell: (cell.figure is not None, rows[cell.row], columns[cell.column]))
    return cells, sorted(columns, key=columns.__getitem__), _compare(cells, layout.metric)


def _rank(run: Record, reference: tuple[str, ...]) -> list[tuple[bool, float, str]]:
    """A sort key of a run's test in a mixed table: the reference, then the common protocol, then the paper's."""
    protocol = protocol_name(run)
    return natural_sort_key([label_test(run) != reference, protocol != COMMON, protocol != "paper"])


def _row(line: Record, layout: Layout) -> Key:
    """The row of a run or figure: measured and published ones, and in mixed columns other tests, share none."""
    source = line["published"]["source"] if "published" in line else None
    hidden = [str(_value(line, name, None)) for name in ONE_TEST] if layout.mixed and source is None else []
    return (*_values(line, layout.keys), source, *hidden)


def _value(line: Record, name: str, default: Any) -> Any:
    try:
        return field_of(line, name)
    except (KeyError, TypeError):
        return default


def _values(line: Record, fields: Sequence[str]) -> Key:
    values = []
    for name in fields:
        value = _value(line, name, None if "published" in line else KeyError)
        if value is KeyError:
            known = list(field_names(line))
            raise FewshotError(f"{line['folder']}: no field {name}{did_you_mean(name, known)}; see its record.json")
        if isinstance(value, dict):
            raise FewshotError(f"{name} is a group of fields; name one of them, such as {name}.{next(iter(value), '')}")
        values.append(", ".join(map(str, value)) if isinstance(value, list) else value)
    return tuple(values)


def _sort_key(name: str, line: Record) -> Any:
    """A sort key of one field: simple algorithms first, tasks by their numbers."""
    value = _values(line, [name])[0]
    if name in ("method", "algorithm"):
        return method_sort_key(str(value), line["algorithm"])
    if name == "task":
        return natural_sort_key([*(line["protocol"][key] for key in ("dataset", "way", "shot")), line["order"]])
    return natural_sort_key([value])


def _column_and_task(cell: Cell, layout: Layout) -> Key:
    """The cell's column, and the values of its row that name a task or test."""
    named = (i for i, name in enumerate(layout.keys) if name in COLUMN or name == "task")
    return cell.column, *(cell.row[i] for i in named)


def _mark_reference(cells: list[Cell], layout: Layout, reference: tuple[str, ...]) -> None:
    """Set which cells are compared: of a column's tests with these labels, those on the best one's episodes."""
    tests: dict[Key, tuple[float, Key]] = {}
    for cell in cells:
        cell.reference = cell.figure is None and label_test(cell.runs[0]) == reference
        key = _column_and_task(cell, layout)
        if cell.reference and (key not in tests or cell.merit > tests[key][0]):
            tests[key] = cell.merit, column_of(cell.runs[0])
    for cell in cells:
        cell.reference = cell.reference and column_of(cell.runs[0]) == tests[_column_and_task(cell, layout)][1]


def _check_columns(cells: list[Cell], layout: Layout) -> None:
    """Raise FewshotError for a column of different test episodes where neither rows nor columns name the difference."""
    of_task = ONE_FUNCTION if layout.metric == "mse" else ONE_TASK
    same = of_task if layout.mixed else COLUMN
    problem = "would share a column but their tests differ in"
    named = {*layout.keys, *layout.cols}
    free = not layout.mixed and "task" not in named
    unnamed, view = ([name for name in names if free and name not in named] for names in (ONE_KIND, ("protocol.view",)))
    firsts: dict[Hashable, Record] = {}
    for cell in sorted(cells, key=lambda cell: cell.figure is not None):  # published figures after the runs
        run, key = cell.runs[0], _column_and_task(cell, layout)
        if cell.figure is None:
            of_dataset = cell.column, run["protocol"]["dataset"]
            for place, fields in ((key, same), (cell.column, unnamed), (of_dataset, view)):
                _check_alike(firsts.setdefault(place, run), run, fields, problem)
        elif key in firsts:
            _check_alike(firsts[key], run, of_task, problem, "task")


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


def find_reference(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The test, as labels, that holds the best measured score in most columns, and then that of most measured cells.

    If there are tests by the common protocol it is one of them. Bold compares cells with this test alone, so it passes
    over a better score by another test, whose footnote says in what that differs.
    """
    measured = [cell for cell in cells if cell.figure is None]
    eligible = [cell for cell in measured if cell.runs[0]["protocol"].get("name") == COMMON] or measured
    best: dict[Key, tuple[float, Cell]] = {}
    for cell in eligible:
        if cell.column not in best or cell.merit > best[cell.column][0]:
            best[cell.column] = cell.merit, cell
    wins = Counter(label_test(cell.runs[0]) for _, cell in best.values())
    counts = Counter(label_test(cell.runs[0]) for cell in eligible)
    return max(counts, key=lambda test: (wins[test], counts[test])) if counts else ()


def _compare(cells: list[Cell], metric: str) -> list[str]:
    """Set the p value of each cell against the best of its column and setting; why others cannot be compared.

    A method whose queries are independent counts in both settings. Trainings on the validation classes are compared
    with one another. In mixed columns only cells of the reference test are compared, see `find_reference`.
    """
    complaints: set[str] = set()
    groups: dict[Hashable, list[tuple[Cell, np.ndarray, bool]]] = defaultdict(list)  # whether it is of that setting
    for cell in cells:
        if cell.figure is not None or not cell.reference:
            continue
        scores = []
        for run in cell.runs:
            try:
                scores.append(read_scores(run))
            except FewshotError as error:
                cell.unreadable = True
                complaints.add(f"{error} (its mean stands in the table, compared with no other)")
        if len(scores) == len(cell.runs) and len(scores[0]) > 1:
            run, mean, own = cell.runs[0], np.mean(scores, axis=0), cell.runs[0]["protocol"]["setting"]
            for setting in ("inductive", "transductive") if run.get("queries_independent") else (own,):
                key = cell.column, column_of(run), run["protocol"]["train_on_val"], setting
                groups[key].append((cell, mean, setting == own))
    compared = [group for group in groups.values() if len(group) > 1 and any(own for *_, own in group)]
    p_values = compare_with_best([[scores for _, scores, _ in group] for group in compared], metric == "mse")
    for group, p_group in zip(compared, p_values, strict=True):
        for (cell, _, own), p in zip(group, p_group, strict=True):
            if own or cell.p is None:
                cell.p = p
    return sorted(complaints)
