"""A table's page: the table, its footnotes, how it was measured, and what it cost; every number is finished text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fewshot.report.cells import Cell, Key, Layout, build_cells
from fewshot.report.costs import COSTS, NOTHING, is_short, join_budgets, list_costs, mean_cost
from fewshot.report.footer import footer
from fewshot.report.footnotes import Place, footnotes
from fewshot.report.labels import COLUMN, label_test
from fewshot.report.published import CAVEATS
from fewshot.report.records import METRIC_NAMES, SCORES, Record, format_field, format_score, in_unit
from fewshot.report.statistics import LEVEL
from fewshot.report.traits import STEPS, VARIATIONS, format_label

if TYPE_CHECKING:
    import pandas as pd

DATASETS = {"mini": "miniImageNet", "tiered": "tieredImageNet", "cub": "CUB", "cifar_fs": "CIFAR-FS", "fc100": "FC100"}


@dataclass(frozen=True)
class Entry:
    """The text of a cell, whether it is set in bold, and the numbers of its footnotes."""

    text: str
    bold: bool = False
    notes: tuple[int, ...] = ()

    def render(self, escape: Callable[[str], str], bold: str, mark: Callable[[str], str]) -> str:
        """The entry in a format, whose form of bold text holds a %s, and whose mark is made of footnotes' numbers."""
        text = bold % escape(self.text) if self.bold else escape(self.text)
        return text + (mark(",".join(map(str, self.notes))) if self.notes else "")


@dataclass(frozen=True)
class Page:
    """A table and what stands below it."""

    title: str
    table: pd.DataFrame  # of entries
    measured: int  # rows of runs; published figures follow
    notes: list[str]  # footnotes, numbered from 1
    footer: list[tuple[str, str]]  # (subject, text)
    costs: pd.DataFrame | None  # of texts
    raw: pd.DataFrame  # a line per cell with its numbers
    complaints: list[str]  # a line for each run that could not be compared


def make_page(
    runs: list[Record], published: Sequence[Record] = (), layout: Layout | None = None, costs: bool = False
) -> Page:
    """The page of a table, for any format.

    Raises:
        FewshotError: runs that were not measured alike would share a cell or a column.
    """
    import pandas as pd

    layout = layout or Layout()
    if published and "source" not in layout.rows.values():
        layout = replace(layout, rows={**layout.rows, "source": "source"})
    cells, columns, complaints = build_cells(runs, list(published), layout)
    rows: dict[Key, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    tests = [label_test(cell.runs[0]) for cell in cells if cell.reference and cell.figure is None]
    reference = next(iter(tests), ()) if layout.mixed else None
    shown = {"steps_shown": STEPS in (*layout.keys, *layout.cols), "budget_shown": "budget" in layout.rows.values()}
    marks, notes = footnotes(list(rows.values()), reference, **shown)
    return Page(
        title=layout.title or _title(cells, layout),
        table=pd.DataFrame(_table(rows, columns, layout, marks)),
        measured=sum(row[0].figure is None for row in rows.values()),
        notes=notes,
        footer=footer(cells, layout.keys),
        costs=pd.DataFrame(list_costs(cells, layout)) if costs and runs else None,
        raw=pd.DataFrame([_raw(cell, layout) for cell in cells]),
        complaints=complaints,
    )


def _title(cells: list[Cell], layout: Layout) -> str:
    """The metric, after the dataset where there is one."""
    metric = METRIC_NAMES[layout.metric]
    datasets = {cell.runs[0]["protocol"]["dataset"] for cell in cells}
    if len(datasets) != 1:
        return metric.capitalize()
    return f"{dataset_label(datasets.pop())}, {metric}"


def dataset_label(name: str) -> str:
    """What a title calls a dataset."""
    return DATASETS.get(name, name.replace("_", " ").capitalize())


def _table(
    rows: dict[Key, list[Cell]], columns: list[Key], layout: Layout, marks: Mapping[Place, list[int]]
) -> list[dict[str, Entry]]:
    """The entries of each row by their headings: labels, figures, and the source of published figures last."""
    empty = {heading: Entry(NOTHING) for column in columns for heading in _headings(column, layout)}
    source = next((heading for heading, name in layout.rows.items() if name == "source"), None)
    lines = []
    for i, (key, row) in enumerate(rows.items()):
        values = layout.values_of(key)
        values["budget"] = join_budgets(row)
        texts = {heading: values[name] for heading, name in layout.rows.items()}
        labels = {heading: Entry(format_field(layout.rows[heading], value)) for heading, value in texts.items()}
        line = labels | empty
        for j, cell in enumerate(row):
            numbers = tuple(marks.get((i, j), ()))
            line.update(zip(_headings(cell.column, layout), _entries(cell, layout, numbers), strict=True))
        if source is not None:
            line[source] = line.pop(source)
        lines.append(line)
    short = any(is_short(run) for row in rows.values() for cell in row for run in cell.runs)
    unused = [
        heading
        for heading, name in layout.rows.items()
        if (name == "budget" and not short) or not any(line[heading].text for line in lines)
    ]
    lines = [{heading: entry for heading, entry in line.items() if heading not in unused} for line in lines]
    for i, (line, row) in enumerate(zip(lines, rows.values(), strict=True)):
        noted = source if source is not None and row[0].figure is not None else next(iter(line))
        line[noted] = replace(line[noted], notes=(*marks.get((i, None), ()), *line[noted].notes))
    return lines


def _headings(column: Key, layout: Layout) -> list[str]:
    if not layout.cols:
        return [f"test {layout.metric}", "interval"]
    forms = {**COLUMN, **VARIATIONS, **dict.fromkeys(("task", "method", "source", "algorithm", "backbone"), "{}")}
    labels = [
        f"{field} not stated" if v is None else format_label(forms[field], v) if field in forms else f"{field} {v}"
        for field, v in zip(layout.cols, column, strict=True)
    ]
    return [", ".join(labels)]


def _entries(cell: Cell, layout: Layout, numbers: tuple[int, ...]) -> list[Entry]:
    """One entry of mean and interval together, or, in a layout without columns, one of each."""
    bold = cell.p is not None and cell.p > LEVEL
    if cell.figure is not None:
        mean, _, half = cell.figure["printed"].partition(" ± ")
        interval = f"± {half}" if half else ""
    else:
        mean, width = format_score(cell.mean(), cell.metric), cell.half_width()
        interval = "± n/a" if width is None else f"± {format_score(width, cell.metric)}"  # one episode has no interval
    if (r2 := cell.r2()) is not None:
        interval += f", R2 {r2:.3f}"  # in Markdown, bold text that ends in a bracket takes no footnote
    if not layout.cols:
        return [Entry(mean, bold, numbers), Entry(interval or NOTHING)]
    return [Entry(f"{mean} {interval}".strip(), bold, numbers)]


def _raw(cell: Cell, layout: Layout) -> dict[str, Any]:
    run, figure = cell.runs[0], cell.figure
    unit, _ = SCORES[cell.metric]
    fields = ("query", "episodes", "setting", "adaptation_steps", "rotations", "selection", "train_on_val", "manifest")
    costs = [field for field, _, _ in COSTS.values()]
    values = layout.values_of(cell.row)
    halves = {"ci95_over_episodes": cell.over_episodes(), "ci95_over_seeds": cell.over_seeds()}
    if figure is not None:
        halves = {"interval": halves["ci95_over_episodes"]}
    line = {
        "column": _headings(cell.column, layout)[0] if layout.cols else None,
        **{name: run[name] for name in ("algorithm", "backbone")},
        **{name: run["protocol"][name] for name in ("dataset", "way", "shot")},
        "metric": "accuracy in per cent" if cell.metric == "accuracy" else cell.metric,
        "value": cell.mean() * unit,
        **{name: None if half is None else half * unit for name, half in halves.items()},
        **({"r2": cell.r2()} if cell.metric == "mse" else {}),
        "interval_kind": figure["interval_kind"] if figure else None,
        "seeds": None if figure else len(cell.runs),
        "p_holm": cell.p,
        "not_told_from_best": None if cell.p is None else cell.p > LEVEL,
        "protocol": None if figure else run["protocol"].get("name", "own"),
        **{name: run["protocol"].get(name) for name in fields},
        "data": None if figure else run["data"]["fingerprint"],
        **{name: None if figure else mean_cost(cell, name) for name in costs},
        "published_in": f"{figure['source']} ({figure['version']})" if figure else None,
        "caveats": "; ".join(CAVEATS[caveat] for caveat in figure["caveats"]) if figure else None,
    }
    labels = {}
    for name, key in layout.rows.items():
        if name in line and key not in ("setting", name, f"protocol.{name}", f"cost.{name}"):
            name = key.replace(".", " ")  # another field of this heading
        elif name in line and key in ("dataset", "way", "shot"):
            name = f"trained {name}"  # those of the test have the name
        if key != "budget":
            labels[name] = in_unit(key, values[key])
    return labels | line
