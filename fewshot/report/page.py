"""A table's page: the table, its footnotes, how it was measured, and what it cost; every number is finished text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fewshot.report.cells import Cell, Key, Layout, build_cells, reference_test
from fewshot.report.labels import COLUMN, VARIATIONS, format_label
from fewshot.report.notes import Place, footer, footnotes
from fewshot.report.published import CAVEATS
from fewshot.report.records import NUMBER, Record
from fewshot.report.statistics import LEVEL

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "–"
DATASETS = {"mini": "miniImageNet", "tiered": "tieredImageNet", "cub": "CUB"}
SCORES = {"accuracy": (100, 2), "mse": (1, 4)}  # unit and decimals in tables and pictures
COSTS = {  # heading: field, unit, decimals
    "training tasks": ("train_tasks", 1, 0),
    "minutes": ("train_seconds", 60, 1),
    "extractor minutes": ("extractor_seconds", 60, 1),
    "tasks/s": ("tasks_per_second", 1, 0),
    "peak MiB": ("peak_memory_bytes", 2**20, 0),
    "gradients": ("gradient_evaluations", 1, 0),
}


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
    reference = reference_test(cell.runs[0] for cell in cells if cell.figure is None) if layout.mixed else None
    marks, notes = footnotes(list(rows.values()), reference)
    return Page(
        title=layout.title or _title(cells, layout),
        table=pd.DataFrame(_table(rows, columns, layout, marks)),
        measured=sum(row[0].figure is None for row in rows.values()),
        notes=notes,
        footer=footer(cells, reference, layout.keys),
        costs=pd.DataFrame(_costs(cells, layout)) if costs and runs else None,
        raw=pd.DataFrame([_raw(cell, layout) for cell in cells]),
        complaints=complaints,
    )


def _title(cells: list[Cell], layout: Layout) -> str:
    """The metric, after the dataset where there is one."""
    metric = "accuracy in per cent" if layout.metric == "accuracy" else "mean squared error"
    datasets = {cell.runs[0]["protocol"]["dataset"] for cell in cells}
    if len(datasets) != 1:
        return metric.capitalize()
    dataset = datasets.pop()
    return f"{DATASETS.get(dataset, dataset.replace('_', ' ').capitalize())}, {metric}"


def _table(
    rows: dict[Key, list[Cell]], columns: list[Key], layout: Layout, marks: Mapping[Place, list[int]]
) -> list[dict[str, Entry]]:
    """The entries of each row by their headings: labels, figures, and the source of published figures last."""
    empty = {heading: Entry(NOTHING) for column in columns for heading in _headings(column, layout)}
    source = next((heading for heading, name in layout.rows.items() if name == "source"), None)
    lines = []
    for i, (key, row) in enumerate(rows.items()):
        values = dict(zip(layout.keys, key, strict=False))
        values["budget"] = join_budgets(row)
        texts = {heading: values[name] for heading, name in layout.rows.items()}
        labels = {heading: Entry("" if value is None else str(value)) for heading, value in texts.items()}
        line = labels | empty
        for j, cell in enumerate(row):
            numbers = tuple(marks.get((i, j), ()))
            line.update(zip(_headings(cell.column, layout), _entries(cell, layout, numbers), strict=True))
        if source is not None:
            line[source] = line.pop(source)
        noted = source if source is not None and row[0].figure is not None else next(iter(line))
        line[noted] = replace(line[noted], notes=tuple(marks.get((i, None), ())))
        lines.append(line)
    short = any(is_short(run) for row in rows.values() for cell in row for run in cell.runs)
    unused = [
        heading
        for heading, name in layout.rows.items()
        if (name == "budget" and not short) or not any(line[heading].text for line in lines)
    ]
    return [{heading: entry for heading, entry in line.items() if heading not in unused} for line in lines]


def _headings(column: Key, layout: Layout) -> list[str]:
    if not layout.cols:
        return ["mean", "interval"]
    forms = {**COLUMN, **VARIATIONS, **dict.fromkeys(("task", "method", "source", "algorithm", "backbone"), "{}")}
    labels = [
        format_label(forms.get(field) or f"{field} {{}}", v) for field, v in zip(layout.cols, column, strict=True)
    ]
    return [", ".join(labels)]


def _entries(cell: Cell, layout: Layout, numbers: tuple[int, ...]) -> list[Entry]:
    """One entry of mean and interval together, or, in a layout without columns, one of each."""
    bold = cell.p is not None and cell.p > LEVEL
    if cell.figure is not None:
        mean, _, half = cell.figure["printed"].partition(" ± ")
        interval = f"± {half}" if half else ""
    else:
        unit, decimals = SCORES[cell.metric]
        mean = f"{cell.mean() * unit:.{decimals}f}"
        width = cell.half_width()
        interval = "± n/a" if width is None else f"± {width * unit:.{decimals}f}"  # one episode has no interval
    if not layout.cols:
        return [Entry(mean, bold, numbers), Entry(interval or NOTHING)]
    return [Entry(f"{mean} {interval}".strip(), bold, numbers)]


def is_short(run: Record) -> bool:
    """Whether a run was trained for fewer steps than its paper's recipe has, or does not say for how many."""
    if "published" in run:
        return False
    steps, paper = run["train"].get("steps"), run["train"].get("paper_steps")
    return steps is None or (paper is not None and steps < paper)


def join_budgets(row: Sequence[Cell]) -> str:
    """How long a row's runs were trained: `60k steps`, `11k of 60k steps`, or minutes where a record has no steps."""
    if row[0].figure is not None:
        return ""
    budgets: list[str] = []
    minutes: list[int] = []
    for cell in row:
        train = cell.runs[0]["train"]
        steps, paper = train.get("steps"), train.get("paper_steps")
        if steps:
            of_paper = f" of {_thousands(paper)}" if paper is not None and steps < paper else ""
            budgets.append(f"{_thousands(steps)}{of_paper} steps")
        elif steps is None and cell.runs[0]["cost"]["train_tasks"]:
            minutes.append(max(1, round((_mean_cost(cell, "train_seconds") or 0) / 60)))
    if minutes:
        budgets.append(f"{' to '.join(dict.fromkeys(map(str, (min(minutes), max(minutes)))))} min")
    return ", ".join(dict.fromkeys(budgets)) or NOTHING


def _thousands(steps: int) -> str:
    return f"{steps / 1000:.0f}k" if steps >= 10_000 or steps % 1000 == 0 else f"{steps:,}"


def _costs(cells: list[Cell], layout: Layout) -> list[dict[str, str]]:
    """What the runs took, means over seeds: a line per cell, but one for cells of a row that show the same runs."""
    groups: dict[tuple[Key, Key], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.figure is None:
            groups[cell.row, tuple(run["folder"] for run in cell.runs)].append(cell)
    lines = []
    for same_runs in groups.values():
        cell = same_runs[0]
        values = dict(zip(layout.keys, cell.row, strict=False))
        line = {name: _text(values[key]) for name, key in layout.rows.items() if key not in ("source", "budget")}
        if "task" not in layout.rows.values():
            line["task"] = cell.runs[0]["task"]
        line["seeds"] = str(len(cell.runs))
        for heading, (field, unit, decimals) in COSTS.items():
            mean = _mean_cost(cell, field)
            line[heading] = NOTHING if mean is None else f"{mean / unit:,.{decimals}f}"
        for heading, part in (("device", "cost"), ("adaptation_steps", "protocol"), ("selection", "protocol")):
            values = (run[part][heading] for each in same_runs for run in each.runs)
            texts = (f"{value:,.0f}" if isinstance(value, NUMBER) else _text(value) for value in values)
            line[heading.replace("_", " ")] = ", ".join(dict.fromkeys(texts))
        lines.append(line)
    # Images have no extractor, and not every learner counts gradients.
    empty = [name for name in ("extractor minutes", "gradients") if all(line[name] == NOTHING for line in lines)]
    return [{name: text for name, text in line.items() if name not in empty} for line in lines]


def _raw(cell: Cell, layout: Layout) -> dict[str, Any]:
    run, figure = cell.runs[0], cell.figure
    unit, _ = SCORES[cell.metric]
    fields = ("query", "episodes", "setting", "adaptation_steps", "rotations", "selection", "train_on_val", "manifest")
    costs = [field for field, _, _ in COSTS.values() if field != "extractor_seconds"]
    values = dict(zip(layout.keys, cell.row, strict=False))
    halves = {"ci95_over_episodes": cell.over_episodes(), "ci95_over_seeds": cell.over_seeds()}
    if figure is not None:
        halves = {"interval": halves["ci95_over_episodes"]}
    return {
        **{name: values[key] for name, key in layout.rows.items() if key != "budget"},
        "column": _headings(cell.column, layout)[0] if layout.cols else None,
        **{name: run[name] for name in ("algorithm", "backbone")},
        **{name: run["protocol"][name] for name in ("dataset", "way", "shot")},
        "metric": "accuracy in per cent" if cell.metric == "accuracy" else cell.metric,
        "value": cell.mean() * unit,
        **{name: None if half is None else half * unit for name, half in halves.items()},
        "interval_kind": figure["interval_kind"] if figure else None,
        "seeds": None if figure else len(cell.runs),
        "p_holm": cell.p,
        "not_told_from_best": None if cell.p is None else cell.p > LEVEL,
        "protocol": None if figure else run["protocol"].get("name", "own"),
        **{name: run["protocol"].get(name) for name in fields},
        "data": None if figure else run["data"]["fingerprint"],
        **{name: None if figure else _mean_cost(cell, name) for name in costs},
        "published_in": f"{figure['source']} ({figure['version']})" if figure else None,
        "caveats": "; ".join(CAVEATS[caveat] for caveat in figure["caveats"]) if figure else None,
    }


def _mean_cost(cell: Cell, field: str) -> float | None:
    """The mean over the runs; None where a run does not know it."""
    values = [run["cost"].get(field) for run in cell.runs]
    return sum(values) / len(values) if all(isinstance(value, NUMBER) for value in values) else None


def _text(value: Any) -> str:
    return NOTHING if value is None or value == "" else str(value)
