"""Cells to a page: the table, its footnotes, what was measured, and what it took; every number finished text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fewshot.report.cells import Cell, Layout, cells
from fewshot.report.labels import COLUMN, VARIATIONS, format_label
from fewshot.report.protocol import footer, remarks
from fewshot.report.published import CAVEATS
from fewshot.report.records import NUMBER, Record, field_of
from fewshot.report.statistics import LEVEL

NOTHING = "–"


@dataclass(frozen=True)
class Entry:
    """The text of a cell, whether it is set in bold, and the numbers of its footnotes."""

    text: str
    bold: bool = False
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Page:
    """A table of entries, and what stands below it: `notes` are numbered from 1, `footer` is (what, text)."""

    title: str
    table: pd.DataFrame
    notes: list[str]
    footer: list[tuple[str, str]]
    cost: pd.DataFrame | None
    raw: pd.DataFrame  # one line per cell with its numbers
    complaints: list[str]


def page(runs: list[Record], published: Sequence[Record] = (), layout: Layout | None = None, cost: bool = True) -> Page:
    """Everything that a table says, whatever its format will be.

    Raises:
        FewshotError: a cell would average, or a column would compare, what was not measured alike.
    """
    layout = layout or Layout()
    if published and "source" not in layout.rows.values():
        layout = Layout(**{**vars(layout), "rows": {**layout.rows, "source": "source"}})
    made, columns, complaints = cells(runs, list(published), layout)
    notes: dict[str, int] = {}
    table: dict[tuple[Any, ...], dict[str, Entry]] = {}
    headings = [heading for column in columns for heading in _headings(column, layout)]
    for cell in made:
        first = {name: Entry(_text(value)) for name, value in zip(layout.rows, cell.row, strict=True)}
        row = table.setdefault(cell.row, {**first, **{heading: Entry(NOTHING) for heading in headings}})
        row.update(zip(_headings(cell.column, layout), _entries(cell, layout, notes), strict=True))
    return Page(
        title=layout.title or ("Accuracy in per cent" if layout.metric == "accuracy" else "Mean squared error"),
        table=pd.DataFrame(list(table.values())),
        notes=list(notes),
        footer=footer(runs, made) if runs else [],
        cost=_cost(made, layout) if cost and runs else None,
        raw=pd.DataFrame([_raw(cell, layout) for cell in made]),
        complaints=complaints,
    )


def _headings(column: tuple[Any, ...], layout: Layout) -> list[str]:
    if not layout.cols:
        return ["mean", "interval"]
    forms = {**COLUMN, **VARIATIONS, "task": "{}", "method": "{}", "source": "{}", "algorithm": "{}", "backbone": "{}"}
    named = {name: forms.get(name, f"{name} {{}}") for name in layout.cols}
    return [", ".join(format_label(form, value) for form, value in zip(named.values(), column, strict=True))]


def _entries(cell: Cell, layout: Layout, notes: dict[str, int]) -> list[Entry]:
    """One entry of mean and interval together, or, in a layout without columns, one of each."""
    bold = cell.p is not None and cell.p > LEVEL
    if cell.figure is not None:
        marks = tuple(sorted(notes.setdefault(note, len(notes) + 1) for note in remarks(cell.figure)))
        mean, _, half = cell.figure["printed"].partition(" ± ")
        text = f"± {half}" if half else ""
    else:
        marks, unit, decimals = (), *((100, 2) if layout.metric == "accuracy" else (1, 4))
        mean = f"{cell.mean(layout.metric) * unit:.{decimals}f}"
        seeds, episodes = cell.over_seeds(layout.metric), cell.over_episodes()
        half = episodes if seeds is None else seeds
        # One episode has no interval; a record says so with null or NaN.
        text = "± n/a" if half is None else f"± {half * unit:.{decimals}f}"
        if seeds is not None:
            apart = "" if episodes is None else f"; ± {episodes * unit:.{decimals}f} over episodes"
            text += f" ({len(cell.runs)} seeds{apart})"
    if not layout.cols:
        return [Entry(mean, bold, marks), Entry(text or NOTHING)]
    return [Entry(f"{mean} {text}".strip(), bold, marks)]


def _cost(made: list[Cell], layout: Layout) -> pd.DataFrame:
    """What the runs took, a line for those of a cell, or of the cells of a row that are scores of the same runs.

    Minutes and tasks/s are means over seeds.
    """
    groups: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in made:
        if cell.figure is None:
            groups[cell.row, tuple(run["folder"] for run in cell.runs)].append(cell)
    lines = []
    for same in groups.values():
        cell, fields = same[0], list(layout.rows.items())
        named = {name: _text(value) for (name, field), value in zip(fields, cell.row, strict=True) if field != "source"}
        if "task" not in layout.rows.values():
            named["task"] = cell.runs[0]["task"]
        lines.append(
            {
                **named,
                "seeds": _amount(len(cell.runs)),
                "training tasks": _amount(_mean(cell, "cost.train_tasks")),
                "minutes": _amount(_mean(cell, "cost.train_seconds", unit=60), decimals=1),
                "extractor minutes": _amount(_mean(cell, "cost.extractor_seconds", unit=60), decimals=1),
                "tasks/s": _amount(_mean(cell, "cost.tasks_per_second")),
                "peak MiB": _amount(_mean(cell, "cost.peak_memory_bytes", unit=2**20)),
                "gradients": _amount(_mean(cell, "cost.gradient_evaluations")),
                "device": _distinct(same, "cost.device"),
                "adaptation steps": _distinct(same, "protocol.adaptation_steps"),
                "selection": _distinct(same, "protocol.selection"),
            }
        )
    frame = pd.DataFrame(lines)
    # Images have no extractor, and not every version of a record counts gradients.
    empty = [name for name in ("extractor minutes", "gradients") if set(frame[name]) == {NOTHING}]
    return frame.drop(columns=empty)


def _raw(cell: Cell, layout: Layout) -> dict[str, Any]:
    run, figure = cell.runs[0], cell.figure
    unit = 100 if layout.metric == "accuracy" else 1
    halves = {"ci95_over_episodes": cell.over_episodes(), "ci95_over_seeds": cell.over_seeds(layout.metric)}
    if figure is not None:
        halves = {"interval": halves["ci95_over_episodes"]}
    fields = ("query", "episodes", "setting", "adaptation_steps", "rotations", "selection", "train_on_val", "manifest")
    costs = ("train_tasks", "train_seconds", "tasks_per_second", "peak_memory_bytes", "gradient_evaluations")
    return {
        **dict(zip(layout.rows, cell.row, strict=True)),
        "column": _headings(cell.column, layout)[0] if layout.cols else None,
        **{name: run[name] for name in ("algorithm", "backbone")},
        **{name: run["protocol"][name] for name in ("dataset", "way", "shot")},
        "metric": "accuracy in per cent" if unit == 100 else layout.metric,
        "value": cell.mean(layout.metric) * unit,
        **{name: None if half is None else half * unit for name, half in halves.items()},
        "interval_kind": figure["interval_kind"] if figure else None,
        "seeds": None if figure else len(cell.runs),
        "p_holm": cell.p,
        "not_told_from_best": None if cell.p is None else cell.p > LEVEL,
        **{name: run["protocol"].get(name) for name in fields},
        "data": None if figure else run["data"]["fingerprint"],
        **{name: None if figure else _mean(cell, f"cost.{name}") for name in costs},
        "published_in": f"{figure['source']} ({figure['version']})" if figure else None,
        "caveats": "; ".join(CAVEATS[caveat] for caveat in figure["caveats"]) if figure else None,
    }


def _mean(cell: Cell, name: str, unit: float = 1) -> float | None:
    part, key = name.split(".")
    values = [run[part].get(key) for run in cell.runs]
    known = [value for value in values if isinstance(value, NUMBER)]
    return sum(known) / len(known) / unit if len(known) == len(values) else None


def _distinct(cells: list[Cell], name: str) -> str:
    return ", ".join(dict.fromkeys(_amount(field_of(run, name)) for cell in cells for run in cell.runs))


def _text(value: Any) -> str:
    return NOTHING if value is None or value == "" else str(value)


def _amount(value: float | str | None, decimals: int = 0) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else f"{value:,.{decimals}f}"
