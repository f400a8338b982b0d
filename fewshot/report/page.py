"""A table's page: the table, its footnotes, how it was measured, and what it cost; every number is finished text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fewshot.report.cells import Cell, Key, Layout, build_cells
from fewshot.report.labels import COLUMN, VARIATIONS, format_label
from fewshot.report.protocol import footnotes, protocol_lines
from fewshot.report.published import CAVEATS
from fewshot.report.records import NUMBER, Record
from fewshot.report.statistics import LEVEL

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "–"
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

    def render(self, escape: Callable[[str], str], bold: str, mark: str, comma: str = ", ") -> str:
        """The entry in a format, whose forms of bold text and of footnotes hold a %s."""
        text = bold % escape(self.text) if self.bold else escape(self.text)
        return text + (mark % comma.join(map(str, self.notes)) if self.notes else "")


@dataclass(frozen=True)
class Page:
    """A table and what stands below it."""

    title: str
    table: pd.DataFrame  # of entries
    notes: list[str]  # footnotes, numbered from 1
    footer: list[tuple[str, str]]  # (subject, text)
    cost: pd.DataFrame | None  # of texts
    raw: pd.DataFrame  # a line per cell with its numbers
    complaints: list[str]  # a line for each run that could not be compared


def make_page(
    runs: list[Record], published: Sequence[Record] = (), layout: Layout | None = None, cost: bool = True
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
    notes: dict[str, int] = {}
    table: dict[Key, dict[str, Entry]] = {}
    empty = {heading: Entry(NOTHING) for column in columns for heading in _headings(column, layout)}
    for cell in cells:
        row_headings = {name: Entry(_text(value)) for name, value in zip(layout.rows, cell.row, strict=True)}
        row = table.setdefault(cell.row, row_headings | empty)
        row.update(zip(_headings(cell.column, layout), _entries(cell, layout, notes), strict=True))
    return Page(
        title=layout.title or ("Accuracy in per cent" if layout.metric == "accuracy" else "Mean squared error"),
        table=pd.DataFrame(list(table.values())),
        notes=list(notes),
        footer=protocol_lines(runs, cells) if runs else [],
        cost=pd.DataFrame(_costs(cells, layout)) if cost and runs else None,
        raw=pd.DataFrame([_raw(cell, layout) for cell in cells]),
        complaints=complaints,
    )


def _headings(column: Key, layout: Layout) -> list[str]:
    if not layout.cols:
        return ["mean", "interval"]
    forms = {**COLUMN, **VARIATIONS, **dict.fromkeys(("task", "method", "source", "algorithm", "backbone"), "{}")}
    labels = [format_label(forms.get(field, f"{field} {{}}"), v) for field, v in zip(layout.cols, column, strict=True)]
    return [", ".join(labels)]


def _entries(cell: Cell, layout: Layout, notes: dict[str, int]) -> list[Entry]:
    """One entry of mean and interval together, or, in a layout without columns, one of each."""
    bold = cell.p is not None and cell.p > LEVEL
    marks: tuple[int, ...] = ()
    if cell.figure is not None:
        marks = tuple(sorted(notes.setdefault(note, len(notes) + 1) for note in footnotes(cell.figure)))
        mean, _, half = cell.figure["printed"].partition(" ± ")
        interval = f"± {half}" if half else ""
    else:
        unit, decimals = SCORES[cell.metric]
        mean = f"{cell.mean() * unit:.{decimals}f}"
        seeds, episodes = cell.over_seeds(), cell.over_episodes()
        half = episodes if seeds is None else seeds
        interval = "± n/a" if half is None else f"± {half * unit:.{decimals}f}"  # one episode has no interval
        if seeds is not None:
            apart = "" if episodes is None else f"; ± {episodes * unit:.{decimals}f} over episodes"
            interval += f" ({len(cell.runs)} seeds{apart})"
    if not layout.cols:
        return [Entry(mean, bold, marks), Entry(interval or NOTHING)]
    return [Entry(f"{mean} {interval}".strip(), bold, marks)]


def _costs(cells: list[Cell], layout: Layout) -> list[dict[str, str]]:
    """What the runs took, means over seeds: a line per cell, but one for cells of a row that show the same runs."""
    groups: dict[tuple[Key, Key], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.figure is None:
            groups[cell.row, tuple(run["folder"] for run in cell.runs)].append(cell)
    lines = []
    for same_runs in groups.values():
        cell, rows = same_runs[0], layout.rows.items()
        line = {name: _text(value) for (name, field), value in zip(rows, cell.row, strict=True) if field != "source"}
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
    halves = {"ci95_over_episodes": cell.over_episodes(), "ci95_over_seeds": cell.over_seeds()}
    if figure is not None:
        halves = {"interval": halves["ci95_over_episodes"]}
    return {
        **dict(zip(layout.rows, cell.row, strict=True)),
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
